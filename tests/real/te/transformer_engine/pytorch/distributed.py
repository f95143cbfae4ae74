"""Random states and recomputation, of which a forward pass needs only the names."""

import contextlib


class CudaRNGStatesTracker:
    def __init__(self):
        self.reset()

    def reset(self):
        self.states_ = {}

    def get_states(self):
        return dict(self.states_)

    def set_states(self, states):
        self.states_ = states

    def add(self, name, seed):
        self.states_[name] = seed

    def fork(self, name="model-parallel-rng"):
        return contextlib.nullcontext()


def checkpoint(function, *args, **kwargs):
    names = ("distribute_saved_activations", "get_rng_state_tracker", "tp_group")
    return function(*args, **{k: v for k, v in kwargs.items() if k not in names})


@contextlib.contextmanager
def activation_recompute_forward(*args, **kwargs):
    yield


def is_fp8_activation_recompute_enabled():
    return False
