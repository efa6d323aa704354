"""Gaussian process regression with a squared exponential kernel."""

import torch
from torch.distributions import Gamma, HalfNormal, MultivariateNormal

PARAMETERS = {"rho": "positive", "alpha": "positive", "sigma": "positive"}


def log_density(parameters, data):
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    rho, alpha, sigma = (parameters[name][:, None, None] for name in ("rho", "alpha", "sigma"))
    near = torch.exp(-(x[:, None] - x).square() / (2 * rho.square()))
    covariance = alpha.square() * near + sigma * torch.eye(len(x))
    prior = Gamma(25.0, 4.0).log_prob(parameters["rho"]) + HalfNormal(2.0).log_prob(parameters["alpha"])
    prior = prior + HalfNormal(1.0).log_prob(parameters["sigma"])
    return prior + MultivariateNormal(torch.zeros(len(x)), covariance, validate_args=False).log_prob(y)
