"""The trainer: GRPO for vision-language models, each part of Observe-R1 switchable alone."""
