module quipu/interop/scenarios

go 1.26.0
