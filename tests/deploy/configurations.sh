# The example configurations as a cluster of real processes. Only their addresses and directories are replaced, by those of this machine.

node_pids=()

try_configurations() {
  local node voters seeds
  on_exit+=(stop_nodes)
  for node in 1 2 3 4; do ports[node]=$(free_port); web[node]=$(free_port); done
  voters=1@127.0.0.1:${ports[1]},2@127.0.0.1:${ports[2]},3@127.0.0.1:${ports[3]}
  seeds=127.0.0.1:${ports[1]},127.0.0.1:${ports[2]}
  export QUIPU_BROKER=$seeds
  for node in 1 2 3; do start_node "$node" --voters "$voters"; done
  for node in 1 2 3; do check "node $node is ready" within 30 node_ready "$node"; done
  start_node 4 --join "$seeds"
  check "node 4 joins" within 30 node_ready 4
  check "the cluster of four is well" within 30 "$QUIPU" cluster status
  check "the alert rules name metrics that there are" rules_name_metrics
  check "the single node's example is understood" single_example
  for node in 4 3 2 1; do check "node $node ends with 0" stop_node "$node"; done
}

start_node() {
  local node=$1
  "$QUIPU" server --config "deploy/cluster/node-$node.toml" "${@:2}" --data-dir "$scratch/node-$node" \
    --kafka-listen 127.0.0.1:0 --grpc-listen "127.0.0.1:${ports[node]}" --http-listen "127.0.0.1:${web[node]}" \
    --advertised-grpc "127.0.0.1:${ports[node]}" >>"$scratch/node-$node.log" 2>&1 </dev/null &
  node_pids[node]=$!
}

node_ready() { http_port=${web[$1]} broker_ready; }

stop_node() {
  local status=0
  kill -TERM "${node_pids[$1]}"
  wait "${node_pids[$1]}" || status=$?
  unset "node_pids[$1]"
  return "$status"
}

rules_name_metrics() {
  local node name
  for node in 1 2 3; do
    exec 3<>"/dev/tcp/127.0.0.1/${web[node]}" || return 1
    printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
    cat <&3
    exec 3>&-
  done >"$scratch/metrics"
  for name in $(grep expr: deploy/prometheus-rules.yaml | grep -o 'quipu_[a-z_]*' | sort -u); do
    grep -qE "^$name[ {]" "$scratch/metrics" || { echo "no metric is named $name"; return 1; }
  done
}

stop_nodes() {
  local pid
  for pid in "${node_pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
}

single_example() {
  ports[5]=$(free_port) web[5]=$(free_port)
  "$QUIPU" server --config deploy/quipu.toml --data-dir "$scratch/single" --grpc-listen "127.0.0.1:${ports[5]}" \
    --kafka-listen 127.0.0.1:0 --http-listen "127.0.0.1:${web[5]}" >>"$scratch/single.log" 2>&1 </dev/null &
  node_pids[5]=$!
  within 10 node_ready 5 && stop_node 5
}
