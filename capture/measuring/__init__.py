"""What a measurement is made of.

`steps` makes a model's step on a real device · `executions` runs it eagerly, compiled or as a CUDA graph · `clock`
times it · `sampling` reads power and clocks meanwhile · `profiling` runs it under torch's profiler · `structure` joins
profiled runs to one trace · `environment` says on what · `failures` says what went wrong. `measure` next door is the
door.
"""
