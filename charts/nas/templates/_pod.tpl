{{/*
What every pod of the chart has in common. Most take a list: the root context, and the values of the part. A null
anywhere in these takes a default away.
*/}}

{{/* Labels and annotations; no version in them, so that a newer chart alone restarts nothing. */}}
{{- define "nas.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $part := include "nas.compact" (index . 1) | fromJson -}}
{{- $labels := merge (include "nas.selector" $root | fromYaml) (dict "nas/claim" (include "nas.claim" $root)) -}}
labels: {{- merge $labels ($part.podLabels | default dict) | toYaml | nindent 2 }}
{{- with $part.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "nas.image" -}}
{{- $global := (index . 0).Values.global.image -}}
{{- $image := index . 1 -}}
{{- with $global.registry }}{{ . }}/{{ end }}{{ $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $global.tag }}{{ end }}
{{- end }}

{{- define "nas.securityContext" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The pod's spec around its containers. Nothing in it is ever empty: Katib's webhook refuses that in trials. */}}
{{- define "nas.podSpec" -}}
{{- $root := index . 0 -}}
{{- $part := include "nas.compact" (index . 1) | fromJson -}}
automountServiceAccountToken: false
securityContext: {{- include "nas.securityContext" . | nindent 2 }}
{{- with $root.Values.global.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with include "nas.affinity" . | fromYaml }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" }}
{{- with get $part $key }}
{{ $key }}: {{- if kindIs "string" . }} {{ . | quote }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
volumes:
  - name: models
    persistentVolumeClaim:
      claimName: {{ include "nas.claim" $root | quote }}
  - name: tmp
    emptyDir: {sizeLimit: 1Gi}
  {{- range $name, $volume := $part.extraVolumes }}
  - {{- toYaml (merge (dict "name" $name) $volume.source) | nindent 4 }}
  {{- end }}
{{- end }}

{{/* What a user says, and one node for all that mount a ReadWriteOnce claim (a user's own podAffinity replaces it). */}}
{{- define "nas.affinity" -}}
{{- $root := index . 0 -}}
{{- $affinity := deepCopy ((index . 1).affinity | default dict) -}}
{{- $claim := $root.Values.global.claim -}}
{{- if and $claim.colocate (eq $claim.accessMode "ReadWriteOnce") (not (hasKey $affinity "podAffinity")) -}}
{{- $labels := dict "matchLabels" (dict "nas/claim" (include "nas.claim" $root)) -}}
{{- $term := dict "labelSelector" $labels "topologyKey" "kubernetes.io/hostname" -}}
{{- $_ := set $affinity "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term)) -}}
{{- end -}}
{{- with $affinity }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* A container's image, rights, resources, environment and mounts. A third element: mount the models read-only. */}}
{{- define "nas.container" -}}
{{- $root := index . 0 -}}
{{- $part := include "nas.compact" (index . 1) | fromJson -}}
image: {{ include "nas.image" (list $root $part.image) | quote }}
imagePullPolicy: {{ $root.Values.global.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- $resources := dict }}
{{- range $key, $amounts := $part.resources }}
{{- if $amounts }}{{ $_ := set $resources $key $amounts }}{{ end }}
{{- end }}
{{- with $resources }}
resources: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.extraEnv }}
env:
  {{- range $name, $value := . }}
  - name: {{ $name }}
    {{- if kindIs "string" $value }}
    value: {{ $value | quote }}
    {{- else }}
    valueFrom: {{- toYaml $value | nindent 6 }}
    {{- end }}
  {{- end }}
{{- end }}
volumeMounts:
  - name: models
    mountPath: /model
    {{- if gt (len .) 2 }}
    readOnly: true
    {{- end }}
  - name: tmp
    mountPath: /tmp
  {{- range $name, $volume := $part.extraVolumes }}
  {{- $mount := omit $volume "source" (ternary "" "readOnly" ($volume.readOnly | default false)) }}
  - {{- toYaml (merge (dict "name" $name) $mount) | nindent 4 }}
  {{- end }}
{{- end }}

{{/* For storage that ignores fsGroup. In every pod that writes to the claim. */}}
{{- define "nas.fixPermissions" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.global.claim.fixPermissions -}}
initContainers:
  - name: fix-permissions
    image: {{ include "nas.image" (list $root (index . 1).image) }}
    imagePullPolicy: {{ $root.Values.global.image.pullPolicy }}
    command: [sh, -c, chown 1000:1000 /model && chmod 2775 /model]
    securityContext:
      runAsUser: 0
      runAsNonRoot: false
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL], add: [CHOWN, FOWNER, FSETID]}
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {memory: 64Mi}
    volumeMounts:
      - name: models
        mountPath: /model
{{- end }}
{{- end }}

{{/*
What the pods of a part may connect to and be connected from. Takes a dict: root, ingress and egress, which are lists
of rules (none: nothing is allowed). It selects the release's own pods, never others in the namespace.
*/}}
{{- define "nas.networkPolicy" -}}
{{- if .root.Values.global.networkPolicy.enabled -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "nas.metadata" (dict "root" .root) | nindent 2 }}
spec:
  podSelector:
    matchLabels: {{- include "nas.selector" .root | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress: {{- toYaml .ingress | nindent 4 }}
  egress: {{- toYaml .egress | nindent 4 }}
{{- end }}
{{- end }}
