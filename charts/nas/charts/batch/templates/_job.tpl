{{- define "batch.spec" -}}
backoffLimit: {{ int .Values.backoffLimit }}
activeDeadlineSeconds: {{ int .Values.activeDeadlineSeconds }}
template:
  metadata:
    labels: {{- include "nas.podLabels" . | nindent 6 }}
  spec:
    restartPolicy: Never
    {{- include "nas.podSpec" (list . .Values) | nindent 4 }}
    containers:
      - name: batch
        {{- include "nas.container" (list . .Values) | nindent 8 }}
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
        volumeMounts:
          - name: models
            mountPath: /model
            readOnly: true
          - name: models
            mountPath: /output
          - name: tmp
            mountPath: /tmp
{{- end }}
