# The Helm chart: rendered as an operator would, and held against Kubernetes' own schemas.

chart=deploy/helm/quipu

try_chart() {
  if ! install_helm; then
    skip "the chart: helm is not there, and Go's module proxy did not give it"
    return
  fi
  check "helm finds nothing wrong with the chart" quietly "$helm" lint --strict --kube-version "$KUBERNETES" "$chart"
  check "three brokers are rendered" render three
  check "five brokers are rendered" render five --set replicas=5 --set antiAffinity=preferred --set rack=r1
  check "a release that joins is rendered" render more --set firstNodeId=6 --set replicas=2 --set join=three-1.three-nodes:9093
  check "fewer brokers than voters are refused" refuses_with "must be at least voters" template x --set replicas=2
  check "two voters are refused" refuses_with voters template x --set voters=2
  check_rendered
  check_schemas
  skip "installing the chart: needs a Kubernetes cluster"
}

# Takes the one that is installed, or builds it.
install_helm() {
  helm=$(command -v helm || echo "$tools/helm")
  [ -x "$helm" ] && return
  command -v go >/dev/null || return 1
  echo "building helm"
  GOBIN=$tools go install "$HELM" >"$log" 2>&1 || { tail -n 5 "$log"; return 1; }
}

template() { "$helm" template "$1" "$chart" --namespace logs --kube-version "$KUBERNETES" "${@:2}"; }
render() { template "$@" >"$scratch/$1.yaml" 2>"$log" || { cat "$log"; return 1; }; }

check_rendered() {
  local nodes=three-nodes.logs.svc.cluster.local:9093
  check "the three brokers are the voters" says \
    "\"1@three-1.$nodes,2@three-2.$nodes,3@three-3.$nodes\"" "$scratch/three.yaml"
  check "Kafka clients are told the pods' names" says 'value: $(POD_NAME).three-nodes.logs.svc.cluster.local:9092' "$scratch/three.yaml"
  check "a broker's node number is its pod's" says "metadata.labels['apps.kubernetes.io/pod-index']" "$scratch/three.yaml"
  check "pods are numbered from 1" says "start: 1" "$scratch/three.yaml"
  check "a further release begins above" says "start: 6" "$scratch/more.yaml"
  check "and has no voters" refuses grep -q QUIPU_VOTERS "$scratch/more.yaml"
}

check_schemas() {
  local name
  if ! find_schemas || ! find_python; then
    skip "Kubernetes' schemas: Go's module proxy, or the Python packages jsonschema and PyYAML, are not to be had"
    return
  fi
  for name in three five more; do
    check "what is rendered for \"$name\" fits Kubernetes $KUBERNETES" quietly validate "$name"
  done
  sed 's/podManagementPolicy/podManagmentPolicy/' "$scratch/three.yaml" >"$scratch/misspelt.yaml"
  check "a misspelt field would be found" refuses_with podManagmentPolicy validate misspelt
  sed 's/containerPort: 9093/containerPort: grpc/' "$scratch/three.yaml" >"$scratch/mistyped.yaml"
  check "a value of a wrong type would be found" refuses_with containerPort validate mistyped
}

find_schemas() {
  local answer
  command -v go >/dev/null && answer=$(go mod download -json "$SCHEMAS" 2>"$log") || return 1
  schemas=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])' <<<"$answer")/pkg/openapiclient/builtins/$KUBERNETES
  [ -d "$schemas" ]
}

find_python() {
  python=python3
  if python3 -c 'import jsonschema, yaml' 2>/dev/null; then return 0; fi
  python3 -m venv "$tools/python" >"$log" 2>&1 && "$tools/python/bin/pip" install -q jsonschema PyYAML >"$log" 2>&1 || return 1
  python=$tools/python/bin/python
}

validate() { "$python" tests/deploy/schemas.py "$schemas" "$scratch/$1.yaml"; }
