{{/* Every name and label, computed once. They take the root context of the chart or of a subchart. */}}

{{/* RELEASE-PART, such as iris-nas-serving */}}
{{- define "nas.name" -}}
{{ .Release.Name }}-{{ .Chart.Name }}
{{- end }}

{{- define "nas.claim" -}}
{{ .Values.global.claim.existing | default (printf "%s-models" .Release.Name) }}
{{- end }}

{{/* What a selector matches: it never changes while a release lives. */}}
{{- define "nas.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "nas.labels" -}}
{{ include "nas.selector" . }}
app.kubernetes.io/part-of: nas
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* An object's name, namespace and labels. Takes a dict: root, and if need be a name and more labels. */}}
{{- define "nas.metadata" -}}
name: {{ .name | default (include "nas.name" .root) }}
namespace: {{ .root.Release.Namespace }}
labels: {{- merge (include "nas.labels" .root | fromYaml) (.labels | default dict) .root.Values.global.labels | toYaml | nindent 2 }}
{{- end }}

{{/* A number as a person writes it: Helm hands 1000000 over as 1e+06. */}}
{{- define "nas.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* A map, as JSON, without what is null in it at any depth: by null one takes a default away. */}}
{{- define "nas.compact" -}}
{{- $result := dict -}}
{{- range $key, $value := . -}}
{{- if kindIs "map" $value -}}
{{- $_ := set $result $key (include "nas.compact" $value | fromJson) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $_ := set $result $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $result -}}
{{- end }}
