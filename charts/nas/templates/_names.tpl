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

{{/*
Paths, a line each, of what Katib's webhook can't convert in a part of a Job: what is empty, for Kubernetes' types leave it
out but for pointers; with a = in front what isn't text; and with a ~ quantities that they write otherwise.
*/}}
{{- define "nas.unkept" -}}
{{- $at := .at -}}
{{- $kind := kindOf .node -}}
{{- $map := `(\.metadata\.(labels|annotations)|\.(nodeSelector|matchLabels|volumeAttributes|flexVolume\.options))\.(?s:.+)` -}}
{{- $word := `(\.(args|command)|\.match(Expressions|Fields)\[[0-9]+\]\.values)\[[0-9]+\]|\[[0-9]+\]\.value` -}}
{{- if eq $kind "invalid" }}{{ printf "\n%s" $at }}
{{- else if regexMatch (printf `(%s|%s)$` $map $word) $at -}}
{{- if ne $kind "string" }}{{ printf "\n=%s" $at }}
{{- else if and (not .node) (regexMatch `\.(env|tolerations)\[[0-9]+\]\.value$` $at) }}{{ printf "\n%s" $at }}{{ end -}}
{{- else if regexMatch `\.(emptyDir\.sizeLimit|resourceFieldRef\.divisor)$` $at -}}
{{- /* In the largest unit that makes it a whole number. */ -}}
{{- $whole := and (eq $kind "string") (regexMatch `^[+-]?[0-9]+([KMGTPE]i|[numkMGTPE]|[eE]-?[0-9]+)?$` .node) (not (regexMatch `000[a-zA-Z]?$` .node)) -}}
{{- if or (not $whole) (and (hasSuffix "i" .node) (eq (mod (regexFind `[0-9]+` .node) 1024) 0)) }}{{ printf "\n~%s" $at }}{{ end -}}
{{- else if and .node (eq $kind "map") -}}
{{- range $key, $value := .node }}{{ include "nas.unkept" (dict "at" (printf "%s.%s" $at $key) "node" $value) }}{{ end -}}
{{- else if and .node (eq $kind "slice") -}}
{{- range $index, $value := .node }}{{ include "nas.unkept" (dict "at" (printf "%s[%d]" $at $index) "node" $value) }}{{ end -}}
{{- else if not .node -}}
{{- $kept := false -}}
{{- if eq $kind "bool" -}}
{{- $kept = or (regexMatch `\.(csi|azureDisk)\.readOnly$` $at) (not (regexMatch `\.(hostNetwork|hostPID|hostIPC|readOnly|stdin|stdinOnce|tty)$` $at)) -}}
{{- else if eq $kind "map" -}}
{{- $kept = not (regexMatch `\.(labels|annotations|nodeSelector|matchLabels|limits|requests|overhead|volumeAttributes)$` $at) -}}
{{- else if eq $kind "slice" -}}
{{- $kept = regexMatch `\.(containers|rules|sources|nodeSelectorTerms)$` $at -}}
{{- else if eq $kind "string" -}}
{{- $kept = regexMatch `(\]|\.(hostPath\.type|grpc\.service|csi\.fsType|storageClassName|fsGroupChangePolicy|mountPropagation|initiatorName|apiGroup))$` $at -}}
{{- else -}}
{{- $kept = not (regexMatch `\.(hostPort|initialDelaySeconds|timeoutSeconds|periodSeconds|successThreshold|failureThreshold)$` $at) -}}
{{- end -}}
{{- if not $kept }}{{ printf "\n%s" $at }}{{ end -}}
{{- end -}}
{{- end }}
