{{/* What is allowed and unwise: sentences for NOTES.txt. What can't work is an error in validate.yaml. */}}
{{- define "nas.warnings" -}}
{{- $values := include "nas.compact" .Values | fromJson -}}
{{- $e := $values.experiment -}}
{{- $a := $e.algorithm -}}
{{- $settings := $a.settings | default dict -}}
{{- $found := list -}}
{{- if $e.enabled -}}
{{- if and (eq $a.name "tpe") (ne (toString $e.parallelTrials) "1") -}}
{{- $found = append $found "tpe suggests the same parameters to all trials of a batch: set experiment.parallelTrials to 1, or take random, sobol or multivariate-tpe." -}}
{{- end -}}
{{- if and (has $a.name (list "cmaes" "sobol")) (not $e.seed) (not (hasKey $settings "random_state")) -}}
{{- $found = append $found (printf "%s repeats the same sequence in every search without a seed: set experiment.seed to true." $a.name) -}}
{{- end -}}
{{- if and (has $a.name (list "bayesianoptimization" "multivariate-tpe")) $e.maxTrials (le (int $e.maxTrials) 10) -}}
{{- $found = append $found (printf "the first 10 trials of %s are random, and there are %d: raise experiment.maxTrials." $a.name (int $e.maxTrials)) -}}
{{- end -}}
{{- if $e.earlyStopping.enabled -}}
{{- if and (ne ($e.resumePolicy | default "Never") "LongRunning") (not (kindIs "invalid" $e.objective.goal)) -}}
{{- $found = append $found "with this experiment.resumePolicy, Katib's early stopping ends when the goal is reached, and a trial stopped after that counts as failed: LongRunning avoids it." -}}
{{- end -}}
{{- if not $e.trialTemplate.retain -}}
{{- $found = append $found "without experiment.trialTemplate.retain, an early-stopped trial's Job may be gone before Katib sees it end, and the search then hangs: set it to true." -}}
{{- end -}}
{{- end -}}
{{- if kindIs "invalid" $e.maxFailedTrials -}}
{{- $found = append $found "without experiment.maxFailedTrials, a search whose trials all fail ends as a success: set it." -}}
{{- end -}}
{{- if and (kindIs "invalid" $e.maxTrials) (kindIs "invalid" $e.objective.goal) -}}
{{- $found = append $found "the search never ends: set experiment.maxTrials or experiment.objective.goal." -}}
{{- end -}}
{{- end -}}
{{- if and .Values.batch.enabled $e.enabled -}}
{{- $found = append $found "batch.enabled while the search may be running: the Job scores with the model that is current when it starts, and isn't repeated for a better one." -}}
{{- end -}}
{{- if and .Values.serving.enabled (not .Values.experiment.enabled) (not .Values.global.claim.existing) -}}
{{- $found = append $found "serving has a new, empty claim and no search to fill it: set global.claim.existing to the claim that has the models." -}}
{{- end -}}
{{- with $found }}{{ toYaml . }}{{ end }}
{{- end }}
