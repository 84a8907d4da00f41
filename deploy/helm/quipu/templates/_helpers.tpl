{{- define "quipu.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "quipu.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "quipu.labels" -}}
{{ include "quipu.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "quipu.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{/* The domain under which each pod has a name of its own. */}}
{{- define "quipu.domain" -}}
{{ include "quipu.name" . }}-nodes.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* host:port of each of the first nodes, as a JSON list. */}}
{{- define "quipu.founders" -}}
{{- $founders := list -}}
{{- range $i := untilStep (int .Values.firstNodeId) (int (add .Values.firstNodeId .Values.voters)) 1 -}}
{{- $founders = append $founders (printf "%s-%d.%s:9093" (include "quipu.name" $) $i (include "quipu.domain" $)) -}}
{{- end -}}
{{- $founders | toJson -}}
{{- end -}}

{{- define "quipu.voters" -}}
{{- $voters := list -}}
{{- range $i, $address := include "quipu.founders" . | fromJsonArray -}}
{{- $voters = append $voters (printf "%d@%s" (add $.Values.firstNodeId $i) $address) -}}
{{- end -}}
{{- join "," $voters -}}
{{- end -}}
