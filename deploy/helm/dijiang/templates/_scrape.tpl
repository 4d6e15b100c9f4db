{{/* Whether to make an object of the Prometheus operator. Argument: a dict of the root context and
     the value, which is true, false or "auto". */}}
{{- define "dijiang.monitored" -}}
{{- if or (eq (toString .value) "true") (and (eq (toString .value) "auto") (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}true{{- end -}}
{{- end -}}

{{/* How to scrape a pod, for a ServiceMonitor and a PodMonitor alike. */}}
{{- define "dijiang.scrape" -}}
path: /metrics
interval: {{ .Values.metrics.intervalSeconds }}s
{{- if include "dijiang.hasOperatorKey" . }}
authorization:
  type: Bearer
  credentials:
    name: {{ include "dijiang.authSecret" . }}
    key: {{ .Values.auth.operatorKey }}
{{- end }}
relabelings:
  # The job that the alerts and the autoscaler's queries look for, whichever monitor it is.
  - targetLabel: job
    replacement: {{ include "dijiang.fullname" . }}
{{- end -}}
