"""Plain words for the published rules and features that decisions name (docs/selection.md), and for a score.

Words only: whether a rule matched and what a feature is worth stand in the log.
"""

from __future__ import annotations

from collections.abc import Mapping

from resia.events import Probe


def score_text(mean: float | None, coverage: float | None = None, digits: int = 3) -> str:
    """A mean reward, and beside it the share of the rollouts behind it that was scored, where that is not all."""
    if mean is None:
        return "-"
    missing = "" if coverage is None or coverage >= 1 else f" ({int(coverage * 100)}% scored)"
    return f"{mean:.{digits}f}{missing}"


RULES: Mapping[str, str] = {
    "select-lever/1:0-budget": "a budget of iterations, tokens, money or seconds is spent, so the run stops",
    "select-lever/1:1-edit-harness": "fewer edits failed than patience allows and one is untried, so the harness is "
    "edited",
    "select-lever/1:2-train-weights": "no edit is left to make, fewer updates failed than patience allows and there is "
    "something to learn from, so the weights are trained",
    "select-lever/1:3-stop": "neither an edit nor an update is left to make, so the run stops",
    "select-algorithm/1:0-requested": "the run asks for this algorithm",
    "select-algorithm/1:1-dpo": "rewards only rank answers, so DPO learns from pairs of them",
    "select-algorithm/1:2-best-of-n": "successes are too rare to be compared with failures of the same item, so "
    "best-of-N copies them",
    "select-algorithm/1:3-entropic": "a few rewards lie far above the others, or only the best counts, so the entropic "
    "objective weighs the best most",
    "select-algorithm/1:4-reinforce-kl": "updates are likely to lose what is solved, so REINFORCE is held near the "
    "reference policy",
    "select-algorithm/1:5-ppo-gae": "rollouts are long and many of their steps earn something, so PPO credits each "
    "step",
    "select-algorithm/1:6-grpo": "rollouts of one item earn differently and there are tokens for more, so GRPO "
    "compares them",
    "select-algorithm/1:7-reinforce-kl": "no rule before this one applies, and REINFORCE with a KL penalty asks for "
    "least",
    "select-algorithm/1:8-fallback": "what the rules name is masked, and there are successes to learn from, so the "
    "first that is not masked is taken",
    "select-algorithm/1:9-none": "every algorithm is masked or has too little to learn from",
    "learned-operators/1:rank": "operators are ranked by what they are meant for, shrunk toward what past runs "
    "measured",
    "baseline/1:0-budget": "a budget of tokens, money or seconds is spent, so the run stops before its search",
    "baseline/1:1-sample": "this run learns nothing: it samples generation 0 while its tokens last",
    "baseline/1:2-search": "this run learns nothing: one answer for every item is chosen on the search items",
    "baseline/1:3-stop": "this run learns nothing: its answer is judged, so it stops",
    "learned-algorithm/1:draw": "a policy that was learned from past runs draws from what is not masked",
}

PROBES: Mapping[Probe, str] = {
    "paraphrase": "the same prompts in other words",
    "shuffle": "the same options in another order",
    "verifier": "the domain's second score of the same answers",
    "search-validation-gap": "the search against the validation items",
}

FEATURES: Mapping[str, str] = {
    "items": "problems that were sampled",
    "group_size": "rollouts of one item, at most",
    "reward_mean": "mean reward",
    "reward_density": "share of a rollout's steps that earned something",
    "horizon": "steps of the median rollout",
    "p_pos": "share of the rollouts that succeeded",
    "successes": "rollouts that succeeded",
    "informative": "share of the items whose rollouts did not all earn the same",
    "forecast": "share of the items to expect with both successes and failures, sampled again",
    "distinct_rewards": "different rewards among the rollouts of an item, median",
    "clustering": "how far success depends on the item, from 0 not at all to 1 wholly",
    "skew": "how far the rewards lean to rare high ones, as the low end of what resampling gives",
    "tail": "spread of the rewards above their median over that below it, likewise",
    "rollout_cost": "tokens of 8 rollouts of every item, over the tokens of one update",
    "afford": "how many times 8 rollouts of every item the tokens left would pay for",
    "regression_risk": "expected chance that an update loses what the champion solved",
    "format_failures": "share of the failures that were not a wrong answer but none that could be used",
    "headroom": "how much more 8 tries solve than one",
    "ess": "share of the rollouts that count once weighed for the policy to train",
    "kl_per_token": "how far that policy is from the one that sampled, in nats a token",
}
