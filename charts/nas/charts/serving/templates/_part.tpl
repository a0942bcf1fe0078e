{{/* The values of serving with the Secret of API keys among its volumes. Takes those values. */}}
{{- define "nas.servingPart" -}}
{{- $part := deepCopy . -}}
{{- with .apiKeys.secret -}}
{{- $volume := dict "mountPath" "/run/nas/api-keys" "readOnly" true "source" (dict "secret" (dict "secretName" .)) -}}
{{- $_ := set $part "extraVolumes" (set (deepCopy ($part.extraVolumes | default dict)) "api-keys" $volume) -}}
{{- end -}}
{{- toYaml $part }}
{{- end }}
