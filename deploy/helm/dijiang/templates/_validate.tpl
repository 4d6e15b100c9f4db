{{/* What the schema cannot see: values that contradict each other or the cluster. */}}
{{- define "dijiang.validate" -}}
{{- $model := .Values.model -}}
{{- if and (eq $model.source "hf") (not (and $model.hf.repo $model.hf.revision)) -}}
{{- fail "model.source is hf: set model.hf.repo and model.hf.revision (a commit or a tag, so that all replicas serve the same weights)." -}}
{{- end -}}
{{- if and (eq $model.source "pvc") (not $model.pvc.claimName) -}}
{{- fail "model.source is pvc: set model.pvc.claimName." -}}
{{- end -}}
{{- if and (eq $model.source "image") (not $model.image.reference) -}}
{{- fail "model.source is image: set model.image.reference." -}}
{{- end -}}
{{- if and (eq $model.source "image") (semverCompare "<1.31.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "model.source is image: image volumes need Kubernetes 1.31 or newer, this is %s. Use hf, pvc or init." .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (eq $model.source "init") (not $model.init.image) -}}
{{- fail "model.source is init: set model.init.image." -}}
{{- end -}}
{{- if and (has $model.source (list "hf" "init")) $model.storage.persistent (eq $model.storage.accessMode "ReadWriteOnce") (gt (int (include "dijiang.maxReplicas" .)) 1) -}}
{{- fail "model.storage.accessMode is ReadWriteOnce, which one node can mount: use ReadWriteMany, model.storage.persistent=false, or one replica." -}}
{{- end -}}
{{- $drain := .Values.drain -}}
{{- $needed := add $drain.preStopSeconds $drain.streamSeconds $drain.slackSeconds -}}
{{- if lt (int (include "dijiang.gracePeriod" .)) (int $needed) -}}
{{- fail (printf "drain.terminationGracePeriodSeconds is %v, but draining may take %v s (preStopSeconds + streamSeconds + slackSeconds): running streams would be killed." $drain.terminationGracePeriodSeconds $needed) -}}
{{- end -}}
{{- $readiness := mul .Values.readiness.periodSeconds .Values.readiness.failureThreshold -}}
{{- if lt (mul .Values.liveness.periodSeconds .Values.liveness.failureThreshold) $readiness -}}
{{- fail "liveness would restart a pod before readiness takes it out of service: raise liveness.periodSeconds or liveness.failureThreshold." -}}
{{- end -}}
{{- if and .Values.auth.enabled (not (or .Values.auth.keysKey .Values.auth.operatorKey)) -}}
{{- fail "auth.enabled needs a key: set auth.keysKey, auth.operatorKey or both." -}}
{{- end -}}
{{- if and .Values.auth.existingSecret .Values.auth.apiKeys -}}
{{- fail "auth.apiKeys go into the Secret that the chart makes: leave them out, or auth.existingSecret." -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas." -}}
{{- end -}}
{{- if and (eq (toString .Values.metrics.serviceMonitor.enabled) "true") .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics.serviceMonitor and metrics.podMonitor would scrape every pod twice: enable one." -}}
{{- end -}}
{{- if and .Values.ingress.sessionAffinity (not (has .Values.ingress.preset (list "nginx" "haproxy"))) -}}
{{- fail "ingress.sessionAffinity works with ingress.preset nginx and haproxy only." -}}
{{- end -}}
{{- if and .Values.inferencePool.enabled (not .Values.inferencePool.pickerName) -}}
{{- fail "inferencePool.enabled needs inferencePool.pickerName, the Service of the endpoint picker." -}}
{{- end -}}
{{- end -}}
