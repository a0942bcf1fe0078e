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
          - --model={{ .Values.global.model }}
          - --input
          {{- range .Values.inputs }}
          - {{ . }}
          {{- end }}
          - --output=/output/{{ .Values.global.model }}/predictions
          - --print={{ int .Values.print }}
          {{- with .Values.digest }}
          - --digest={{ . }}
          {{- end }}
          {{- if gt (int .Values.shards) 1 }}
          - --shards={{ int .Values.shards }}
          - --shard-index=$(JOB_COMPLETION_INDEX)
          {{- end }}
{{- end }}
