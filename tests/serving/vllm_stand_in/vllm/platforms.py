from types import SimpleNamespace

from vllm import SETTINGS

current_platform = SimpleNamespace(device_type=SETTINGS["device"])
