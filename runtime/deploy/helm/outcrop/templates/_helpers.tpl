{{- define "outcrop.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "outcrop.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "outcrop.labels" -}}
{{ include "outcrop.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "outcrop.image" -}}
{{- $variant := ternary "cuda" "cpu" (gt (int .Values.gpus) 0) -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $variant) }}
{{- end -}}

{{- define "outcrop.claim" -}}
{{ .Values.cache.existingClaim | default (printf "%s-cache" (include "outcrop.name" .)) }}
{{- end -}}

{{- /* A setting as a flag's text. Numbers of values files are floats, which would print as 1.048576e+06. */ -}}
{{- define "outcrop.setting" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- /* What the schema cannot say. */ -}}
{{- define "outcrop.check" -}}
{{- $elsewhere := dict "model" "models" "servedModelName" "servedModelNames" "device" "gpus" "port" "service.port" "udsPath" "service.port" "grpcPort" "grpcPort" "drainTimeout" "drainSeconds" "apiKey" "apiKeySecret" "apiKeyFile" "apiKeySecret" -}}
{{- range $name, $_ := .Values.settings -}}
{{- with get $elsewhere $name -}}
{{- fail (printf "settings.%s: the chart sets this; say %s instead" $name .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.servedModelNames (ne (len .Values.servedModelNames) (len .Values.models)) -}}
{{- fail (printf "servedModelNames: %d names for %d models; give one for each, or none" (len .Values.servedModelNames) (len .Values.models)) -}}
{{- end -}}
{{- if and .Values.offline (not .Values.cache.enabled) -}}
{{- fail "offline: without cache.enabled there is nothing to take the models from; put them on a volume, and name its claim in cache.existingClaim" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling: minReplicas is above maxReplicas" -}}
{{- end -}}
{{- end -}}
