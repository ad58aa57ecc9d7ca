"""Models without weights that are zero, so that every part shows in the results."""

import torch


def disturbed(model):
    """The model with noise on every parameter, for use."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()
