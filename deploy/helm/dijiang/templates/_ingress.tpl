{{/* Streams pass at once, may be silent for long, and a session stays with its replica. */}}
{{- define "dijiang.ingressPreset" -}}
{{- $affinity := .Values.ingress.sessionAffinity -}}
{{- if eq .Values.ingress.preset "nginx" -}}
nginx.ingress.kubernetes.io/proxy-http-version: "1.1"
nginx.ingress.kubernetes.io/proxy-buffering: "off"
nginx.ingress.kubernetes.io/proxy-read-timeout: "3600"
nginx.ingress.kubernetes.io/proxy-send-timeout: "3600"
{{- if $affinity }}
nginx.ingress.kubernetes.io/upstream-hash-by: "$http_x_session_id"
{{- end }}
{{- else if eq .Values.ingress.preset "haproxy" -}}
haproxy.org/timeout-server: 1h
haproxy.org/timeout-client: 1h
haproxy.org/backend-config-snippet: option http-no-delay
{{- if $affinity }}
haproxy.org/load-balance: hdr(X-Session-Id)
{{- end }}
{{- else if eq .Values.ingress.preset "alb" -}}
alb.ingress.kubernetes.io/target-type: ip
alb.ingress.kubernetes.io/healthcheck-path: /readyz
alb.ingress.kubernetes.io/load-balancer-attributes: idle_timeout.timeout_seconds=3600
{{- end -}}
{{- end -}}
