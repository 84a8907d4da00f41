# The systemd unit.

try_unit() {
  if ! command -v systemd-analyze >/dev/null; then
    skip "the unit file: systemd-analyze is not there"
    return
  fi
  # The binary it names must be there.
  sed "s|/usr/local/bin/quipu|$QUIPU|" deploy/quipu.service >"$scratch/quipu.service"
  check "systemd finds nothing wrong with the unit" output_is "" verify_unit
  check "and rates its exposure 1.5 of 10 or less" quietly systemd-analyze security --offline=yes --threshold=15 "$scratch/quipu.service"
  skip "starting the unit: needs a machine that systemd runs"
}

verify_unit() { systemd-analyze verify "$scratch/quipu.service" 2>&1; }
