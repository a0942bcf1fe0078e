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

{{/* Labels of pods; no version in them, so that a newer chart alone restarts nothing. */}}
{{- define "nas.podLabels" -}}
{{ include "nas.selector" . }}
nas/claim: {{ include "nas.claim" . }}
{{- end }}

{{/* A number as a person writes it: Helm hands 1000000 over as 1e+06. */}}
{{- define "nas.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}
