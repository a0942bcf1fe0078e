{{/* What every pod of the chart has in common. */}}

{{/* Takes a list: the root context, and the part's {repository, tag}. */}}
{{- define "nas.image" -}}
{{- $global := (index . 0).Values.global.image -}}
{{- $image := index . 1 -}}
{{- with $global.registry }}{{ . }}/{{ end }}{{ $image.repository }}:{{ $image.tag | default $global.tag }}
{{- end }}

{{/* The pod's spec around its containers. Takes a list: the root context, and the part's values (nodeSelector, …). */}}
{{- define "nas.podSpec" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.global.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with include "nas.affinity" . | fromYaml }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: models
    persistentVolumeClaim:
      claimName: {{ include "nas.claim" $root }}
  - name: tmp
    emptyDir: {sizeLimit: 1Gi}
{{- end }}

{{/* What a user says, and one node for all that mount a ReadWriteOnce claim (a user's own podAffinity replaces it). */}}
{{- define "nas.affinity" -}}
{{- $root := index . 0 -}}
{{- $affinity := deepCopy (index . 1).affinity -}}
{{- $claim := $root.Values.global.claim -}}
{{- if and $claim.colocate (eq $claim.accessMode "ReadWriteOnce") (not (hasKey $affinity "podAffinity")) -}}
{{- $labels := dict "matchLabels" (dict "nas/claim" (include "nas.claim" $root)) -}}
{{- $term := dict "labelSelector" $labels "topologyKey" "kubernetes.io/hostname" -}}
{{- $_ := set $affinity "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term)) -}}
{{- end -}}
{{- with $affinity }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* A container's image, rights and resources. Takes a list: the root context, and the part's {image, resources}. */}}
{{- define "nas.container" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
image: {{ include "nas.image" (list $root $part.image) }}
imagePullPolicy: {{ $root.Values.global.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- with $part.resources }}
resources: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
