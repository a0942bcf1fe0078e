{{/* RELEASE-HASH. Only what Katib lets no one edit is in the hash, and no version: an unchanged search keeps its name. */}}
{{- define "experiment.hash" -}}
{{- $spec := include "experiment.immutable" (dict "root" . "name" "NAME" "seed" "SEED") | fromYaml | toJson -}}
{{- printf "%s run %v" $spec (int .Values.run) | sha256sum | trunc 8 -}}
{{- end }}

{{/* What the names of scheduled searches begin with. */}}
{{- define "experiment.base" -}}
{{ .Values.name | default .Release.Name }}
{{- end }}

{{- define "experiment.name" -}}
{{ .Values.name | default (printf "%s-%s" .Release.Name (include "experiment.hash" .)) }}
{{- end }}

{{/* The seed of the algorithm and of the trainer: another one for every search, the same for an unchanged one. */}}
{{- define "experiment.seed" -}}
{{ mod (include "experiment.hash" . | adler32sum | int64) 2147483647 }}
{{- end }}

{{/* The whole object. Takes a dict: root, the name and seed to put in, and if need be more labels and ownerReferences. */}}
{{- define "experiment.object" -}}
{{- $v := .root.Values -}}
apiVersion: kubeflow.org/v1beta1
kind: Experiment
metadata:
  {{- include "nas.metadata" . | nindent 2 }}
  annotations:
    nas/model: {{ $v.global.model | quote }}
    nas/search: {{ include "experiment.hash" .root | quote }}
    {{- if $v.onlyWhenDataChanges }}
    nas/only-when-data-changes: "true"
    {{- end }}
    {{- with include "nas.compact" $v.annotations | fromJson }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .ownerReferences }}
  ownerReferences: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- range $key := list "maxTrial" "parallelTrial" "maxFailedTrial" }}
  {{- $count := get $v (printf "%ss" $key) }}
  {{- if not (kindIs "invalid" $count) }}
  {{ $key }}Count: {{ int $count }}
  {{- end }}
  {{- end }}
  {{- include "experiment.immutable" . | fromYaml | toYaml | nindent 2 }}
{{- end }}

{{/* The spec without what may be edited. Takes a dict: root, and the name and seed to put in. */}}
{{- define "experiment.immutable" -}}
{{- $root := .root -}}
{{- $v := include "nas.compact" $root.Values | fromJson -}}
{{- $metrics := prepend ($v.objective.additionalMetrics | default list) $v.objective.metric -}}
objective:
  type: {{ $v.objective.type }}
  {{- if not (kindIs "invalid" $v.objective.goal) }}
  goal: {{ $v.objective.goal }}
  {{- end }}
  objectiveMetricName: {{ $v.objective.metric | quote }}
  {{- with $v.objective.additionalMetrics }}
  additionalMetricNames: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "experiment.strategies" (list $metrics $v.objective.strategies) }}
  metricStrategies: {{- . | nindent 4 }}
  {{- end }}
algorithm:
  algorithmName: {{ $v.algorithm.name }}
  {{- $seeded := has $v.algorithm.name (list "random" "tpe" "multivariate-tpe" "bayesianoptimization" "cmaes" "sobol") }}
  {{- $settings := merge (dict) ($v.algorithm.settings | default dict) (ternary (dict "random_state" .seed) dict (and $v.seed $seeded)) }}
  {{- include "experiment.settings" $settings | nindent 2 }}
{{- if $v.earlyStopping.enabled }}
earlyStopping:
  algorithmName: {{ $v.earlyStopping.algorithm }}
  {{- include "experiment.settings" $v.earlyStopping.settings | nindent 2 }}
{{- end }}
{{- with $v.resumePolicy }}
resumePolicy: {{ . }}
{{- end }}
{{- with include "experiment.collector" (list $v $metrics) | fromYaml }}
metricsCollectorSpec: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.nasConfig }}
nasConfig: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.parameters }}
parameters:
  {{- range $name, $p := . }}
  - name: {{ $name | quote }}
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
{{- end }}
trialTemplate: {{- include "experiment.template" . | nindent 2 }}
{{- end }}

{{- define "experiment.strategies" -}}
{{- $strategies := index . 1 | default dict -}}
{{- range $metric := index . 0 -}}
{{- with get $strategies $metric }}
- name: {{ $metric | quote }}
  value: {{ . }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "experiment.settings" -}}
{{- with . }}
algorithmSettings:
  {{- range $name, $value := . }}
  - name: {{ $name }}
    value: {{ include "nas.text" $value | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Takes a list: the values, and the names of the metrics. */}}
{{- define "experiment.collector" -}}
{{- $v := index . 0 -}}
{{- $collector := $v.metricsCollector -}}
{{- $formats := $collector.formats -}}
{{- $ours := not (or $v.trialTemplate.trialSpec $v.trialTemplate.configMap) -}}
{{- if and (kindIs "invalid" $formats) $ours (eq ($collector.kind | default "") "StdOut") -}}
{{- $formats = list -}}
{{- range $metric := index . 1 -}}
{{- /* Katib counts brackets: two of them, the name's and the value's. Lines that aren't an epoch's say nothing. */ -}}
{{- $formats = append $formats (printf `^[0-9TZ:.-]* ?epoch=[0-9]+.* (%s)=([+-]?[0-9]*\.?[0-9]+([Ee][+-]?[0-9]+)?)` $metric) -}}
{{- end -}}
{{- end -}}
{{- $source := deepCopy ($collector.source | default dict) -}}
{{- with $formats -}}
{{- $_ := set $source "filter" (dict "metricsFormat" .) -}}
{{- end -}}
{{- with $collector.kind -}}
collector:
  kind: {{ . | quote }}
  {{- with $collector.customCollector }}
  customCollector: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- with $source }}
source: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Takes what experiment.immutable takes. */}}
{{- define "experiment.template" -}}
{{- $v := include "nas.compact" .root.Values | fromJson -}}
{{- $t := $v.trialTemplate -}}
{{- $spec := $t.trialSpec -}}
{{- if not (or $spec $t.configMap) -}}
{{- $spec = include "experiment.job" . | fromYaml -}}
{{- end -}}
primaryContainerName: {{ $t.primaryContainerName | quote }}
{{- with $t.primaryPodLabels }}
primaryPodLabels: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $t.successCondition }}
successCondition: {{ . | quote }}
{{- end }}
{{- with $t.failureCondition }}
failureCondition: {{ . | quote }}
{{- end }}
{{- if $t.retain }}
{{- /* Without it an early-stopped trial's Job is deleted before Katib sees it end, and the Experiment hangs. */}}
retain: true
{{- end }}
trialParameters: {{- include "experiment.trialParameters" (list $v $spec) | nindent 2 }}
{{- if $t.configMap }}
configMap: {{- toYaml $t.configMap | nindent 2 }}
{{- else }}
trialSpec: {{- toYaml $spec | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the values say; else each parameter that the trial uses, then its name. Takes a list: the values, the trialSpec. */}}
{{- define "experiment.trialParameters" -}}
{{- $v := index . 0 -}}
{{- $text := toJson (index . 1) -}}
{{- $given := $v.trialTemplate.trialParameters | default dict -}}
{{- range $name := keys ($given | default $v.parameters | default dict) | sortAlpha }}
{{- $parameter := get $given $name | default (dict "reference" $name) }}
{{- if or $given $v.trialTemplate.configMap (contains (printf "${trialParameters.%s}" $name) $text) }}
- name: {{ $name | quote }}
  {{- with $parameter.description }}
  description: {{ . | quote }}
  {{- end }}
  reference: {{ $parameter.reference | quote }}
{{- end }}
{{- end }}
{{- if and (not $given) (contains "${trialParameters.trialName}" $text) }}
- name: trialName
  reference: ${trialSpec.Name}
{{- end }}
{{- end }}

{{/* A trial of the trainer. Katib's webhook refuses empty values anywhere in it. Takes what experiment.immutable takes. */}}
{{- define "experiment.job" -}}
{{- $root := .root -}}
{{- $v := include "nas.compact" $root.Values | fromJson -}}
{{- $args := merge (dict) ($v.trainer.args | default dict) (ternary (dict "seed" .seed) dict (and $v.seed (not (hasKey ($v.parameters | default dict) "seed")))) -}}
{{- /* A manifest tells which image made its model. */ -}}
{{- $image := dict "NAS_IMAGE" (include "nas.image" (list $root $v.trainer.image)) -}}
{{- $trainer := merge (dict "extraEnv" (merge (dict) ($v.trainer.extraEnv | default dict) $image)) $v.trainer -}}
{{- $metadata := include "nas.podMetadata" (list $root $v.trainer) | fromYaml -}}
{{- /* The trial's own log is empty: Katib sends its output to this container. */ -}}
{{- $default := dict "kubectl.kubernetes.io/default-container" "metrics-logger-and-collector" -}}
{{- $_ := set $metadata "annotations" (merge ($metadata.annotations | default dict) $default) -}}
apiVersion: batch/v1
kind: Job
spec:
  backoffLimit: {{ int $v.backoffLimit }}
  activeDeadlineSeconds: {{ int $v.activeDeadlineSeconds }}
  ttlSecondsAfterFinished: {{ int $v.ttlSecondsAfterFinished }}
  template:
    metadata: {{- toYaml $metadata | nindent 6 }}
    spec:
      restartPolicy: Never
      {{- include "nas.podSpec" (list $root $v.trainer) | nindent 6 }}
      {{- with include "nas.fixPermissions" (list $root $v.trainer) }}
      {{- . | nindent 6 }}
      {{- end }}
      containers:
        - name: {{ $v.trialTemplate.primaryContainerName | quote }}
          {{- include "nas.container" (list $root $trainer) | nindent 10 }}
          command: {{- toYaml $v.trainer.command | nindent 12 }}
          args:
            {{- range $name, $_ := $v.parameters }}
            - {{ printf "--%s=${trialParameters.%s}" $name $name | quote }}
            {{- end }}
            {{- range $name, $value := $args }}
            - {{ printf "--%s=%s" $name (include "nas.text" $value) | quote }}
            {{- end }}
            - {{ printf "--export-path=/model/%s/trials/%s/${trialParameters.trialName}" $v.global.model .name | quote }}
{{- end }}

{{/*
What Katib would refuse to change in an Experiment that is there: sentences for templates/validate.yaml. It lets one
edit the three counts: maxTrialCount above the trials there are, and of a search that is done only if that ended by
its number of trials and its resumePolicy isn't Never.
*/}}
{{- define "experiment.refusedEdit" -}}
{{- $name := include "experiment.name" . -}}
{{- with lookup "kubeflow.org/v1beta1" "Experiment" .Release.Namespace $name -}}
{{- $mend := printf "kubectl -n %s delete experiment %s" $.Release.Namespace $name -}}
{{- $counts := dict "maxTrials" .spec.maxTrialCount "parallelTrials" .spec.parallelTrialCount "maxFailedTrials" .spec.maxFailedTrialCount -}}
{{- $changed := list -}}
{{- range $key, $count := $counts -}}
{{- $new := get $.Values $key -}}
{{- if ne (toString $count) (ternary "<nil>" (toString (int $new)) (kindIs "invalid" $new)) -}}
{{- $changed = append $changed $key -}}
{{- end -}}
{{- end -}}
{{- $keeps := ne (.spec.resumePolicy | default "Never") "Never" -}}
{{- $closed := false -}}
{{- range dig "status" "conditions" list . -}}
{{- if and (has .type (list "Succeeded" "Failed")) (eq (toString .status) "True") -}}
{{- $closed = not (and $keeps (eq (.reason | default "") "ExperimentMaxTrialsReached")) -}}
{{- end -}}
{{- end -}}
{{- $trials := int (dig "status" "trials" 0 .) -}}
{{- if ne (dig "metadata" "annotations" "nas/search" "" .) (include "experiment.hash" $) }}
- {{ printf "experiment.name %s belongs to another search, and Katib lets no one edit that: choose another name, or remove it (its models stay): %s" $name $mend | quote }}
{{- else if and $changed $closed }}
- {{ printf "the search %s is done and Katib doesn't go on with it, so that experiment.%s can't change: set it back, or ask for a new search with experiment.run." $name (join ", " $changed) | quote }}
{{- else if and $changed (not (kindIs "invalid" $.Values.maxTrials)) (le (int $.Values.maxTrials) $trials) }}
- {{ printf "the search %s has %d trials, and Katib changes nothing in it unless experiment.maxTrials (%d) is above that: raise it." $name $trials (int $.Values.maxTrials) | quote }}
{{- end }}
{{- end -}}
{{- end }}
