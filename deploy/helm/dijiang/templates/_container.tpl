{{/* The server's container. */}}
{{- define "dijiang.container" -}}
name: server
image: {{ include "dijiang.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  {{- range .Values.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  {{- include "dijiang.env" . | nindent 2 }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: http
    containerPort: 8000
    protocol: TCP
{{- include "dijiang.probes" . | nindent 0 }}
{{- if gt (int .Values.drain.preStopSeconds) 0 }}
lifecycle:
  preStop:
    # The pod still takes requests while proxies learn that it is going.
    {{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}
    sleep:
      seconds: {{ .Values.drain.preStopSeconds }}
    {{- else }}
    exec:
      command: [sleep, {{ .Values.drain.preStopSeconds | quote }}]
    {{- end }}
{{- end }}
resources:
  {{- include "dijiang.resources" . | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- if .Values.shmSizeLimit }}
  - name: shm
    mountPath: /dev/shm
  {{- end }}
  {{- if include "dijiang.hasKeyFile" . }}
  - name: api-keys
    mountPath: /etc/dijiang
    readOnly: true
  {{- end }}
  {{- include "dijiang.modelMount" (dict "root" . "readOnly" true) | nindent 2 }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "dijiang.env" -}}
- name: DIJIANG_HOST
  value: "0.0.0.0"
- name: DIJIANG_PORT
  value: "8000"
- name: DIJIANG_DRAIN_SECONDS
  value: {{ .Values.drain.streamSeconds | quote }}
{{- if ne .Values.model.source "demo" }}
- name: DIJIANG_MODEL
  value: {{ .Values.model.mountPath | quote }}
{{- end }}
{{- with default (ternary .Values.model.hf.repo "" (eq .Values.model.source "hf")) .Values.model.servedName }}
- name: DIJIANG_SERVED_MODEL_NAME
  value: {{ . | quote }}
{{- end }}
{{- if not .Values.auth.enabled }}
- name: DIJIANG_INSECURE
  value: "true"
{{- end }}
{{- if include "dijiang.hasKeyFile" . }}
- name: DIJIANG_API_KEY_FILE
  value: /etc/dijiang/api-keys
{{- end }}
{{- if include "dijiang.hasOperatorKey" . }}
- name: DIJIANG_API_KEYS
  valueFrom:
    secretKeyRef:
      name: {{ include "dijiang.authSecret" . }}
      key: {{ .Values.auth.operatorKey }}
{{- end }}
{{- range $name, $value := .Values.config }}
- name: {{ printf "DIJIANG_%s" (snakecase $name | upper) }}
  value: {{ include "dijiang.plain" $value | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "dijiang.probes" -}}
{{- $startup := .Values.startup -}}
startupProbe:
  httpGet:
    path: /readyz
    port: http
  periodSeconds: {{ $startup.periodSeconds }}
  timeoutSeconds: 5
  failureThreshold: {{ divf $startup.budgetSeconds $startup.periodSeconds | ceil | int }}
readinessProbe:
  httpGet:
    path: /readyz
    port: http
  periodSeconds: {{ .Values.readiness.periodSeconds }}
  timeoutSeconds: {{ .Values.readiness.timeoutSeconds }}
  failureThreshold: {{ .Values.readiness.failureThreshold }}
livenessProbe:
  httpGet:
    path: /livez
    port: http
  periodSeconds: {{ .Values.liveness.periodSeconds }}
  timeoutSeconds: {{ .Values.liveness.timeoutSeconds }}
  failureThreshold: {{ .Values.liveness.failureThreshold }}
{{- end -}}

{{- define "dijiang.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- $gpu := dict .Values.gpu.resource (.Values.gpu.count | int | toString) -}}
{{- $resources = mergeOverwrite $resources (dict "limits" $gpu) (dict "requests" (deepCopy $gpu)) -}}
{{- end -}}
{{- with .Values.resourceClaims -}}
{{- $names := list -}}
{{- range . }}{{- $names = append $names (dict "name" .name) -}}{{- end -}}
{{- $_ := set $resources "claims" $names -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
