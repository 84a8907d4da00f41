# The static binary, by itself.

try_binary() {
  check "the binary needs no other file" is_static
  check "a broker starts" start_broker "$scratch/alone"
  check "a topic is created" quietly "$QUIPU" topic create squeezed --partitions 2
  check "10,000 records are produced, compressed with zstd" produce_squeezed
  check "and consumed" consume_squeezed
  check "the broker ends with 0 when it is asked to" stop_broker
}

is_static() {
  ldd "$QUIPU" >"$log" 2>&1 || true
  grep -Eq 'statically linked|not a dynamic' "$log"
}

produce_squeezed() { seq 10000 | quietly "$QUIPU" produce squeezed --compression zstd; }
consume_squeezed() { [ "$("$QUIPU" consume squeezed --format raw | sort -n | md5sum)" = "$(seq 10000 | md5sum)" ]; }
