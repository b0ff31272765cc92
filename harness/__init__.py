"""Questions (ablation files) to graphs of stages, run once each wherever there is room."""
