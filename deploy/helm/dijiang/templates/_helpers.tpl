{{/* Names */}}
{{- define "dijiang.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "dijiang.fullname" -}}
{{- $name := include "dijiang.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "dijiang.serviceAccountName" -}}
{{- default (ternary (include "dijiang.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Labels that select pods: they never change, whatever the values. */}}
{{- define "dijiang.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dijiang.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dijiang.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "dijiang.labels" -}}
{{ include "dijiang.selectorLabels" . }}
{{ include "dijiang.commonLabels" . }}
{{- end -}}

{{/* What every object's metadata begins with. Argument: a dict of the root context and, optionally,
     a name, annotations and labels; those given win over the common ones. */}}
{{- define "dijiang.metadata" -}}
{{- $root := .root -}}
name: {{ .name | default (include "dijiang.fullname" $root) }}
namespace: {{ .namespace | default $root.Release.Namespace }}
labels:
  {{- mergeOverwrite (include "dijiang.labels" $root | fromYaml) (deepCopy (.labels | default dict)) | toYaml | nindent 2 }}
{{- with mergeOverwrite (deepCopy $root.Values.commonAnnotations) (deepCopy (.annotations | default dict)) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "dijiang.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- $default := ternary .Chart.AppVersion (printf "%s-cuda" .Chart.AppVersion) (eq (int .Values.gpu.count) 0) -}}
{{- printf "%s:%s" $image.repository (default $default $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the API keys, and whether it holds clients' keys. */}}
{{- define "dijiang.authSecret" -}}
{{- default (printf "%s-api-keys" (include "dijiang.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "dijiang.hasKeyFile" -}}
{{- $auth := .Values.auth -}}
{{- if and $auth.enabled $auth.keysKey (or $auth.existingSecret $auth.apiKeys) -}}true{{- end -}}
{{- end -}}

{{- define "dijiang.hasOperatorKey" -}}
{{- if and .Values.auth.enabled .Values.auth.operatorKey -}}true{{- end -}}
{{- end -}}

{{/* Most replicas that may run at once, without those of an update. */}}
{{- define "dijiang.maxReplicas" -}}
{{- ternary .Values.replicas .Values.autoscaling.maxReplicas (eq .Values.autoscaling.type "none") | int -}}
{{- end -}}

{{- define "dijiang.gracePeriod" -}}
{{- $drain := .Values.drain -}}
{{- $sum := add $drain.preStopSeconds $drain.streamSeconds $drain.slackSeconds -}}
{{- default $sum $drain.terminationGracePeriodSeconds | int -}}
{{- end -}}

{{/* PromQL that selects this release's series. */}}
{{- define "dijiang.seriesSelector" -}}
{{- printf "job=%q,namespace=%q" (include "dijiang.fullname" .) .Release.Namespace -}}
{{- end -}}

{{/* A number or word as the text of an environment variable; Helm holds numbers as floats. */}}
{{- define "dijiang.plain" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* Not the Service's labels: the test pod must get none of its requests. */}}
{{- define "dijiang.testLabels" -}}
app.kubernetes.io/name: {{ include "dijiang.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
