"""What each listed sampler can be: the knobs with which it runs through the tests of its kind."""

import pytest

# What else a listed sampler can be. Each runs through the tests of its kind below, like the plain ones.
ORDERS = [{"solver_order": order} for order in (1, 2, 3)]
SOLVERS = [
    {**order, "singlestep": singlestep, "solver_type": solver_type}
    for order in ORDERS
    for singlestep in (False, True)
    for solver_type in ("midpoint", "heun")
    if order != ORDERS[0] or (singlestep, solver_type) == (False, "midpoint")  # the others do nothing there
]
DETERMINISTIC = {
    "ddim": [{"clip": None}],
    "pndm": [{}, {"skip_prk_steps": True}],
    "euler": [{}],
    "heun": [{}],
    "kdpm2": [{}],
    "lms": [*ORDERS, {"solver_order": 4}],
    "deis": ORDERS,
    "dpmsolver": SOLVERS,
    "dpmsolver++": SOLVERS,
    "unipc": [
        {**order, "solver_type": solver_type, "predict_x0": predict_x0, "corrector": corrector}
        for order in ORDERS
        for solver_type in ("bh1", "bh2")
        for predict_x0 in (False, True)
        for corrector in (False, True)
        if corrector or order != ORDERS[0] or (solver_type, predict_x0) == ("bh2", True)
    ],
}
STOCHASTIC = {
    "ddpm": [{"clip": None}, {"clip": None, "variance_type": "fixed_large"}],
    "ddim": [{"clip": None, "eta": 1.0}, {"clip": None, "eta": 0.5}],
    "euler": [{"s_churn": 40.0}],
    "euler-a": [{}],
    "heun": [{"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}],
    "kdpm2-a": [{}],
    "karras-ve": [{}],
    "score-sde-ve": [{}, {"correct_steps": 0}, {"correct_steps": 2}],
    "dpmsolver++": [{"algorithm_type": "sde-dpmsolver++", **knobs} for knobs in SOLVERS],
    "dpmsolver": [{"algorithm_type": "sde-dpmsolver", **knobs} for knobs in SOLVERS if not knobs["singlestep"]],
}


def variants(kinds):
    return [pytest.param(name, knobs, id=f"{name}-{i}") for name, all_ in kinds.items() for i, knobs in enumerate(all_)]
