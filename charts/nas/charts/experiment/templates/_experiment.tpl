{{/* The first of the hash's uses: the name. Only what Katib lets no one edit is in the hash, and no version. */}}
{{- define "experiment.hash" -}}
{{- $spec := include "experiment.immutable" (dict "root" . "name" "NAME" "seed" "SEED") -}}
{{- printf "%s run %v" $spec (int .Values.run) | sha256sum | trunc 8 -}}
{{- end }}

{{- define "experiment.name" -}}
{{ .Values.name | default (printf "%s-%s" .Release.Name (include "experiment.hash" .)) }}
{{- end }}

{{/* The seed of the algorithm and of the trainer: another one for every search, the same for an unchanged one. */}}
{{- define "experiment.seed" -}}
{{ mod (include "experiment.hash" . | adler32sum | int64) 2147483647 }}
{{- end }}

{{/* The spec without what may be edited. Takes a dict: root, and the name and seed to put in. */}}
{{- define "experiment.immutable" -}}
{{- $root := .root -}}
{{- $v := $root.Values -}}
objective:
  type: {{ $v.objective.type }}
  {{- if not (kindIs "invalid" $v.objective.goal) }}
  goal: {{ $v.objective.goal }}
  {{- end }}
  objectiveMetricName: {{ $v.objective.metric }}
  {{- with $v.objective.additionalMetrics }}
  additionalMetricNames: {{- toYaml . | nindent 4 }}
  {{- end }}
  metricStrategies:
    {{- range $metric := prepend $v.objective.additionalMetrics $v.objective.metric }}
    - name: {{ $metric }}
      value: {{ get $v.objective.strategies $metric | default (ternary "max" "min" (eq $v.objective.type "maximize")) }}
    {{- end }}
algorithm:
  algorithmName: {{ $v.algorithm.name }}
  {{- $settings := $v.algorithm.settings }}
  {{- if not (has $v.algorithm.name (list "grid" "hyperband")) }}
  {{- $settings = merge (dict) $settings (dict "random_state" .seed) }}
  {{- end }}
  {{- with $settings }}
  algorithmSettings:
    {{- range $name, $value := . }}
    - name: {{ $name }}
      value: {{ include "nas.text" $value | quote }}
    {{- end }}
  {{- end }}
{{- if $v.earlyStopping.enabled }}
earlyStopping:
  algorithmName: medianstop
  algorithmSettings:
    - name: min_trials_required
      value: {{ int $v.earlyStopping.minTrials | quote }}
    - name: start_step
      value: {{ int $v.earlyStopping.startStep | quote }}
{{- end }}
{{- /* With Never, the service that stops trials goes away when the goal is reached, and the next one it stops fails. */}}
resumePolicy: LongRunning
metricsCollectorSpec:
  collector:
    kind: StdOut
  source:
    filter:
      metricsFormat:
        {{- range prepend $v.objective.additionalMetrics $v.objective.metric }}
        {{- /* Katib counts brackets: two of them, the name's and the value's. Lines that aren't an epoch's say nothing. */}}
        - {{ printf `^epoch=[0-9]+.* (%s)=([+-]?[0-9]*\.?[0-9]+([Ee][+-]?[0-9]+)?)` . | squote }}
        {{- end }}
parameters:
  {{- range $name, $p := $v.parameters }}
  - name: {{ $name }}
    parameterType: {{ $p.type }}
    feasibleSpace:
      {{- range $key := list "min" "max" "step" }}
      {{- if hasKey $p $key }}
      {{ $key }}: {{ include "nas.text" (get $p $key) | quote }}
      {{- end }}
      {{- end }}
      {{- with $p.list }}
      list:
        {{- range . }}
        - {{ include "nas.text" . | quote }}
        {{- end }}
      {{- end }}
      {{- with $p.distribution }}
      distribution: {{ . }}
      {{- end }}
  {{- end }}
trialTemplate:
  primaryContainerName: trial
  {{- /* Without it an early-stopped trial's Job is deleted before Katib sees it end, and the Experiment hangs. */}}
  retain: true
  trialParameters:
    {{- range $name, $_ := $v.parameters }}
    - name: {{ $name }}
      reference: {{ $name }}
    {{- end }}
    - name: trialName
      reference: ${trialSpec.Name}
  trialSpec: {{- include "experiment.job" . | nindent 4 }}
{{- end }}

{{/* A trial. Katib's webhook refuses empty values anywhere in it. */}}
{{- define "experiment.job" -}}
{{- $root := .root -}}
{{- $v := $root.Values -}}
{{- $args := merge (dict) $v.trainer.args (dict "seed" .seed) -}}
apiVersion: batch/v1
kind: Job
spec:
  backoffLimit: {{ int $v.backoffLimit }}
  activeDeadlineSeconds: {{ int $v.activeDeadlineSeconds }}
  ttlSecondsAfterFinished: {{ int $v.ttlSecondsAfterFinished }}
  template:
    metadata:
      labels: {{- include "nas.podLabels" $root | nindent 8 }}
      annotations:
        {{- /* The trial's own log is empty: Katib sends its output to this one. */}}
        kubectl.kubernetes.io/default-container: metrics-logger-and-collector
    spec:
      restartPolicy: Never
      {{- include "nas.podSpec" (list $root $v.trainer) | nindent 6 }}
      containers:
        - name: trial
          {{- include "nas.container" (list $root $v.trainer) | nindent 10 }}
          command: {{- toYaml $v.trainer.command | nindent 12 }}
          args:
            {{- range $name, $_ := $v.parameters }}
            - --{{ $name }}=${trialParameters.{{ $name }}}
            {{- end }}
            {{- range $name, $value := $args }}
            - --{{ $name }}={{ include "nas.text" $value }}
            {{- end }}
            - --export-path=/model/{{ $v.global.model }}/trials/{{ .name }}/${trialParameters.trialName}
          {{- with $v.trainer.env }}
          env:
            {{- range $name, $value := . }}
            - name: {{ $name }}
              value: {{ $value | quote }}
            {{- end }}
          {{- end }}
          volumeMounts:
            - name: models
              mountPath: /model
            - name: tmp
              mountPath: /tmp
{{- end }}
