"""The trainer: GRPO for vision-language models with the parts of Observe-R1, each switchable alone."""
