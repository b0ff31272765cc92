"""One folder per source of benchmarks: lm-eval task YAMLs and the adapter they load."""
