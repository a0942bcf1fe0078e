{{- define "batch.spec" -}}
completions: {{ int .Values.shards }}
parallelism: {{ int .Values.parallelism }}
completionMode: Indexed
backoffLimitPerIndex: {{ int .Values.backoffLimit }}
activeDeadlineSeconds: {{ int .Values.activeDeadlineSeconds }}
podFailurePolicy:
  rules:
    - action: Ignore  # a drained node is no failure
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    - action: FailJob  # wrong options, or an input or a folder that is refused: trying again can't help
      onExitCodes:
        containerName: batch
        operator: In
        values: [2, 3]
      onPodConditions: []  # Kubernetes 1.28's schema asks for it
template:
  metadata: {{- include "nas.podMetadata" (list . .Values) | nindent 4 }}
  spec:
    restartPolicy: Never
    {{- include "nas.podSpec" (list . .Values) | nindent 4 }}
    {{- with include "nas.fixPermissions" (list . .Values) }}
    {{- . | nindent 4 }}
    {{- end }}
    containers:
      - name: batch
        {{- include "nas.container" (list . .Values "readOnly") | nindent 8 }}
          - name: models
            mountPath: /output
        command: [python3, /app/score.py]
        args:
          - --store=/model
          - {{ printf "--model=%s" .Values.global.model | quote }}
          - --input
          {{- range .Values.inputs }}
          - {{ . | quote }}
          {{- end }}
          - --format={{ .Values.format }}
          {{- if .Values.probabilities }}
          - --probabilities
          {{- end }}
          {{- with .Values.keep }}
          - --keep
          {{- range . }}
          - {{ . | quote }}
          {{- end }}
          {{- end }}
          - --on-error={{ .Values.onError }}
          - --print={{ int .Values.print }}
          {{- with .Values.digest }}
          - --digest={{ . }}
          {{- end }}
          - --wait={{ int .Values.waitForModel }}
          - --workers=1
          {{- if gt (int .Values.shards) 1 }}
          - --shards={{ int .Values.shards }}
          - --shard-index=$(JOB_COMPLETION_INDEX)
          {{- end }}
{{- end }}

{{/* Of what the Job is and how often it is asked for: in its name and in its output's. */}}
{{- define "batch.hash" -}}
{{ printf "%s run %d" (include "batch.spec" . | fromYaml | toJson) (int .Values.run) | sha256sum | trunc 8 }}
{{- end }}
