{{/* How the model comes into the pod. `demo` needs nothing: it is in the image. */}}
{{- define "dijiang.modelVolume" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "pvc" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ $model.pvc.claimName }}
    readOnly: true
{{- else if eq $model.source "image" }}
- name: model
  image:
    reference: {{ $model.image.reference }}
    pullPolicy: {{ $model.image.pullPolicy }}
{{- else if and (ne $model.source "demo") $model.storage.persistent }}
- name: model
  persistentVolumeClaim:
    claimName: {{ include "dijiang.modelClaim" . }}
{{- else if ne $model.source "demo" }}
- name: model
  emptyDir:
    sizeLimit: {{ $model.storage.size }}
{{- end }}
{{- end -}}

{{- define "dijiang.modelClaim" -}}
{{- default (printf "%s-model" (include "dijiang.fullname" .)) .Values.model.storage.existingClaim -}}
{{- end -}}

{{/* Argument: a dict of the root context and whether the mount is read-only. */}}
{{- define "dijiang.modelMount" -}}
{{- $model := .root.Values.model -}}
{{- if ne $model.source "demo" }}
- name: model
  mountPath: {{ $model.mountPath }}
  readOnly: {{ .readOnly }}
  {{- if and (eq $model.source "pvc") $model.pvc.subPath }}
  subPath: {{ $model.pvc.subPath }}
  {{- else if eq $model.source "hf" }}
  # A folder for each revision: running replicas never see another's files.
  subPath: {{ printf "%s@%s" $model.hf.repo $model.hf.revision | sha256sum | trunc 16 | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "dijiang.modelInitContainers" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "hf" }}
- name: fetch-model
  image: {{ include "dijiang.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command:
    - hf
    - download
    - {{ $model.hf.repo | quote }}
    - --revision={{ $model.hf.revision }}
    - --local-dir={{ $model.mountPath }}
    - --include=*.json
    - --include=*.jinja
    - --include=*.safetensors
  {{- with $model.hf.tokenSecret }}
  env:
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ . }}
          key: {{ $model.hf.tokenKey }}
  {{- end }}
  {{- include "dijiang.modelInitCommon" . | nindent 2 }}
{{- else if eq $model.source "init" }}
- name: fetch-model
  image: {{ $model.init.image | quote }}
  {{- with $model.init.command }}
  command:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $model.init.args }}
  args:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $model.init.env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- include "dijiang.modelInitCommon" . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "dijiang.modelInitCommon" -}}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- include "dijiang.modelMount" (dict "root" . "readOnly" false) | nindent 2 }}
{{- end -}}
