{{- define "elearn.labels" -}}
app.kubernetes.io/name: elearn
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "elearn.selector" -}}
app.kubernetes.io/name: elearn
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* A namespace has no dots, so that no two releases come to one name; a label's value has at most 63 characters. */}}
{{- define "elearn.installation" -}}
{{- $both := printf "%s.%s" .Release.Name .Release.Namespace -}}
{{- if .Values.installation -}}
{{ .Values.installation }}
{{- else if eq .Release.Name .Release.Namespace -}}
{{ .Release.Name }}
{{- else if gt (len $both) 63 -}}
{{ printf "%s.%s" (trunc 54 $both) (sha256sum $both | trunc 8) }}
{{- else -}}
{{ $both }}
{{- end -}}
{{- end }}

{{- define "elearn.systemNamespace" -}}
{{ .Values.systemNamespace | default (printf "system-%s" .Release.Namespace) }}
{{- end }}

{{/* Whether services make the namespaces of projects themselves, and so need rights in all of them. */}}
{{- define "elearn.everywhere" -}}
{{ and (contains "{project}" .Values.projects.namespace) (empty .Values.projects.only) | ternary "yes" "no" }}
{{- end }}

{{/* The pod security standard of a namespace that the chart makes: for [name, project or ""], as .place. */}}
{{- define "elearn.podSecurityOf" -}}
{{- $root := .Values.projects.mayBeRoot -}}
{{- $project := last .place -}}
{{- if and $root (eq .Values.projects.podSecurity "restricted") (or (empty $project) (has "*" $root) (has $project $root)) -}}
baseline
{{- else -}}
{{ .Values.projects.podSecurity }}
{{- end -}}
{{- end }}

{{/* The namespaces that the chart makes for projects, as a JSON list of [name, project or ""]. */}}
{{- define "elearn.projectNamespaces" -}}
{{- if not (contains "{project}" .Values.projects.namespace) -}}
{{ list (list .Values.projects.namespace "") | toJson }}
{{- else -}}
{{- $made := list -}}
{{- range .Values.projects.only -}}
{{- $made = append $made (list (replace "{project}" . $.Values.projects.namespace) .) -}}
{{- end -}}
{{ $made | toJson }}
{{- end -}}
{{- end }}

{{- define "elearn.natsHost" -}}
{{- if .Values.nats.bundled -}}
{{- if or .Values.nats.host .Values.nats.tls -}}
{{- fail "nats.host, nats.tls: they are of a NATS of yours: say nats.bundled=false as well" -}}
{{- end -}}
{{ .Release.Name }}-nats
{{- else -}}
{{ required "nats.host: the address of your NATS, as nats.bundled is false" .Values.nats.host }}
{{- end -}}
{{- end }}

{{- define "elearn.postgresHost" -}}
{{- if .Values.postgres.bundled -}}
{{- if or .Values.postgres.host .Values.postgres.options -}}
{{- fail "postgres.host, postgres.options: they are of a PostgreSQL of yours: say postgres.bundled=false as well" -}}
{{- end -}}
{{ .Release.Name }}-postgres
{{- else -}}
{{ required "postgres.host: the address of your PostgreSQL, as postgres.bundled is false" .Values.postgres.host }}
{{- end -}}
{{- end }}

{{- define "elearn.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "elearn.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods of the control plane may run. */}}
{{- define "elearn.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
The operator's settings for a service of the name .service, as a JSON object of texts. (A large number out of a file of
values would otherwise be written 1e+06; and `merge` takes an empty text, 0 and false for not being there.)
*/}}
{{- define "elearn.settings" -}}
{{- $found := dict -}}
{{- range $env := list .Values.env (index .Values.services .service).env -}}
{{- range $name, $value := $env -}}
{{- $_ := set $found $name (kindIs "string" $value | ternary $value (toJson $value)) -}}
{{- end -}}
{{- end -}}
{{ toJson $found }}
{{- end }}

{{- define "elearn.environment" -}}
{{- $given := include "elearn.given" . -}}
{{ $given }}
{{- range $name, $value := include "elearn.settings" . | fromJson }}
{{- if contains (printf "- name: %s\n" $name) $given }}
{{- fail (printf "env: %s is set by the chart itself; values.yaml tells which value it follows" $name) }}
{{- end }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* What the chart itself tells a service of the name .service; the passwords come first, as the URLs refer to them. */}}
{{- define "elearn.given" -}}
- name: NATS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.secret }}, key: nats-password-{{ .service }}}
- name: POSTGRES_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.secret }}, key: postgres-password-{{ .service }}}
- name: ELEARN_NATS_URL
  value: {{ printf "%s://%s:$(NATS_PASSWORD)@%s:%v" (ternary "tls" "nats" .Values.nats.tls) .service (include "elearn.natsHost" .) .Values.nats.port | quote }}
- name: ELEARN_POSTGRES_URL
  value: {{ printf "postgresql://%s:$(POSTGRES_PASSWORD)@%s:%v/%s%s" .service (include "elearn.postgresHost" .) .Values.postgres.port .service (empty .Values.postgres.options | ternary "" (printf "?%s" .Values.postgres.options)) | quote }}
- name: ELEARN_CLOUD
  value: kubernetes
- name: ELEARN_KUBERNETES_NAMESPACE
  value: {{ include "elearn.systemNamespace" . }}
- name: ELEARN_KUBERNETES_PROJECT_NAMESPACE
  value: {{ .Values.projects.namespace | quote }}
- name: ELEARN_KUBERNETES_CREATE_NAMESPACES
  value: {{ include "elearn.everywhere" . | eq "yes" | quote }}
{{- with .Values.projects.only }}
- name: ELEARN_KUBERNETES_PROJECTS
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.projects.mayBeRoot }}
- name: ELEARN_KUBERNETES_ROOT_PROJECTS
  value: {{ join "," . | quote }}
{{- end }}
- name: ELEARN_KUBERNETES_IMAGE
  value: {{ .Values.jobImage | default .Values.image }}
- name: ELEARN_KUBERNETES_IMAGE_PULL_POLICY
  value: {{ .Values.imagePullPolicy }}
- name: ELEARN_KUBERNETES_INSTALLATION
  value: {{ include "elearn.installation" . }}
- name: ELEARN_HEALTH_HOST
  value: "*"
- name: ELEARN_HEALTH_PORT
  value: "8471"
- name: ELEARN_LOG_LEVEL
  value: {{ .Values.logLevel }}
{{- if eq .service "scheduler" }}
- name: ELEARN_KUBERNETES_BOARD_ACCESS
  value: service
{{- with .Values.boardImage }}
- name: ELEARN_KUBERNETES_BOARD_IMAGE
  value: {{ . }}
{{- end }}
{{- with .Values.trainingImage }}
- name: ELEARN_KUBERNETES_TRAINING_IMAGE
  value: {{ . }}
{{- end }}
{{- if .Values.codePort }}
- name: ELEARN_KUBERNETES_CODE_HOST
  value: "*"
- name: ELEARN_KUBERNETES_CODE_PORT
  value: {{ .Values.codePort | quote }}
- name: ELEARN_KUBERNETES_CODE_URL
  value: http://{{ .Release.Name }}-scheduler.{{ .Release.Namespace }}.svc:{{ .Values.codePort }}
{{- end }}
{{- end }}
{{- if has .service (list "datastore" "registry") }}
- name: ELEARN_KUBERNETES_MODEL_STORE
  value: {{ .Values.modelStore | quote }}
{{- end }}
{{- if and (has .service (list "datastore" "registry")) .Values.singleNodeClasses }}
- name: ELEARN_KUBERNETES_SINGLE_NODE_CLASSES
  value: {{ join "," .Values.singleNodeClasses | quote }}
{{- end }}
{{- if eq .service "api" }}
- name: ELEARN_LISTEN
  value: "*:8470"
- name: ELEARN_ADMIN_TOKEN_FILE
  value: /run/elearn/admin-token
{{- end }}
{{- end }}
