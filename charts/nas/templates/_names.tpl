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
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "nas.labels" -}}
{{ include "nas.selector" . }}
app.kubernetes.io/part-of: nas
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* An object's name, namespace and labels. Takes a dict: root, and if need be a name and more labels. */}}
{{- define "nas.metadata" -}}
name: {{ .name | default (include "nas.name" .root) | quote }}
namespace: {{ .root.Release.Namespace | quote }}
{{- $labels := merge (include "nas.labels" .root | fromYaml) (.labels | default dict) (.root.Values.global.labels | default dict) }}
labels: {{- include "nas.compact" $labels | fromJson | toYaml | nindent 2 }}
{{- end }}

{{/* A number as a person writes it: Helm hands 1000000 over as 1e+06, and 1e6 after `--set` as text. */}}
{{- define "nas.text" -}}
{{- $value := . -}}
{{- if and (kindIs "string" .) (regexMatch "^[+-]?[0-9.]+[eE][+-]?[0-9]+$" (toString .)) }}{{ $value = float64 . }}{{ end -}}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}
{{- end }}

{{/* Annotations, where there are any. */}}
{{- define "nas.annotations" -}}
{{- with include "nas.compact" . | fromJson -}}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
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

{{/* Paths, separated by spaces, of what is empty in a part of a Job: what Katib's webhook can't convert. */}}
{{- define "nas.empties" -}}
{{- $at := .at -}}
{{- if kindIs "map" .node -}}
{{- range $key, $value := .node }} {{ include "nas.empties" (dict "at" (printf "%s.%s" $at $key) "node" $value) }}{{ end -}}
{{- else if kindIs "slice" .node -}}
{{- range $index, $value := .node }} {{ include "nas.empties" (dict "at" (printf "%s[%d]" $at $index) "node" $value) }}{{ end -}}
{{- end -}}
{{- $kept := and (kindIs "map" .node) (regexMatch `\.(affinity|resources|securityContext|emptyDir|metadata|labelSelector)$` $at) -}}
{{- $kept = or $kept (and (kindIs "string" .node) (hasSuffix "]" $at)) -}}
{{- $lost := and (kindIs "bool" .node) (regexMatch `\.(hostNetwork|hostPID|hostIPC|readOnly|stdin|tty)$` $at) -}}
{{- if and (not .node) (not $kept) (or $lost (not (kindIs "bool" .node))) (not (kindIs "float64" .node)) (not (kindIs "int64" .node)) }} {{ $at }}{{ end -}}
{{- end }}
