# The Helm chart: rendered as an operator would, and held against Kubernetes' own schemas.

chart=deploy/helm/quipu

try_chart() {
  if ! install_tool helm "$HELM"; then
    skip "the chart: helm is not there, and Go's module proxy did not give it"
    return
  fi
  check "helm finds nothing wrong with the chart" quietly "$tools/helm" lint --strict "$chart"
  check "three brokers are rendered" render three
  check "five brokers are rendered" render five --set replicas=5 --set antiAffinity=preferred --set rack=r1
  check "a release that joins is rendered" render more --set firstNodeId=6 --set replicas=2 --set join=three-1.three-nodes:9093
  check "fewer brokers than voters are refused" refuses "$tools/helm" template x "$chart" --set replicas=2
  check "two voters are refused" refuses "$tools/helm" template x "$chart" --set voters=2
  check_rendered
  check_schemas
}

# install_tool NAME MODULE: takes the one that is installed, or builds it.
install_tool() {
  local name=$1 module=$2
  mkdir -p "$tools"
  [ -x "$tools/$name" ] && return
  if command -v "$name" >/dev/null; then
    ln -sf "$(command -v "$name")" "$tools/$name"
    return
  fi
  command -v go >/dev/null || return 1
  echo "building $name"
  GOBIN=$tools go install "$module" >"$log" 2>&1 || { tail -n 5 "$log"; return 1; }
}

render() { "$tools/helm" template "$1" "$chart" --namespace logs "${@:2}" >"$scratch/$1.yaml" 2>"$log" || { cat "$log"; return 1; }; }

check_rendered() {
  local nodes=three-nodes.logs.svc.cluster.local:9093
  check "the three brokers are the voters" says \
    "\"1@three-1.$nodes,2@three-2.$nodes,3@three-3.$nodes\"" "$scratch/three.yaml"
  check "a broker's node number is its pod's" says "metadata.labels['apps.kubernetes.io/pod-index']" "$scratch/three.yaml"
  check "pods are numbered from 1" says "start: 1" "$scratch/three.yaml"
  check "a further release begins above" says "start: 6" "$scratch/more.yaml"
  check "and has no voters" refuses grep -q QUIPU_VOTERS "$scratch/more.yaml"
}

check_schemas() {
  local name
  if ! install_tool kubectl-validate "$VALIDATE"; then
    skip "Kubernetes' schemas: kubectl-validate is not there, and Go's module proxy did not give it"
    return
  fi
  for name in three five more; do
    check "what is rendered for \"$name\" fits Kubernetes $KUBERNETES" quietly \
      "$tools/kubectl-validate" --version "$KUBERNETES" "$scratch/$name.yaml"
  done
  sed 's/podManagementPolicy/podManagmentPolicy/' "$scratch/three.yaml" >"$scratch/misspelt.yaml"
  check "a misspelt field would be found" refuses "$tools/kubectl-validate" --version "$KUBERNETES" "$scratch/misspelt.yaml"
  skip "installing the chart: needs a Kubernetes cluster"
}
