"""Tests against the real libraries of `warm-lightning[extras]`, without a network; run by `make test-extras`."""

import os

# No library asks a server whether something new is there.
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "GRADIO_ANALYTICS_ENABLED": "False"}
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
