"""Beam search in plain Python, in the rules of two transformers releases: the oracle of the golden tokens.

`next_log_probabilities(sequences)` gives one list of V log-probabilities per sequence; nothing is cached and no
library generates. `current` follows 5.x and is checked against its generate; `compat` follows 4.33, which the
reference pins. Both return (tokens after BOS, cut before the first EOS; score).
"""

IMPOSSIBLE = -1e9


def candidates(next_log_probabilities, running, keep):
    """The `keep` best continuations of `running` = [(score, tokens)], best first, ties to the lower flat index."""
    table = next_log_probabilities([tokens for _, tokens in running])
    flat = [
        (score + value, beam, token)
        for beam, ((score, _), row) in enumerate(zip(running, table))
        for token, value in enumerate(row)
    ]
    flat.sort(key=lambda c: -c[0])
    return [(score, running[beam][1] + [token]) for score, beam, token in flat[:keep]]


def trim(tokens, eos):
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def current(next_log_probabilities, bos, eos, beams, max_length, length_penalty, early_stopping):
    """transformers 5.x. `max_length` counts BOS; the divisor counts generated tokens, EOS included."""
    running = [(0.0, [bos])] + [(IMPOSSIBLE, [bos])] * (beams - 1)
    finished = []  # [(score, tokens)], best first, at most `beams`
    length = 1
    while True:
        best = candidates(next_log_probabilities, running, 2 * beams)
        stops = [tokens[-1] == eos or length + 1 >= max_length for _, tokens in best]
        new = [
            (score / length**length_penalty, tokens)
            for (score, tokens), stop in list(zip(best, stops))[:beams]
            if stop
        ]
        # A stable sort: of equal scores the one found earlier stays in front.
        finished = sorted(finished + new, key=lambda h: -h[0])[:beams]
        running = [c for c, stop in zip(best, stops) if not stop][:beams]
        length += 1
        if not running or (early_stopping is True and len(finished) == beams):
            break
        hoped = max_length - 1 if early_stopping == "never" and length_penalty > 0 else length - 1
        if len(finished) == beams and running[0][0] / hoped**length_penalty <= finished[-1][0]:
            break
    score, tokens = finished[0]
    return trim(tokens[1:], eos), score


def compat(next_log_probabilities, bos, eos, beams, max_length, length_penalty=1.0):
    """transformers 4.33 with early_stopping true. The divisor counts BOS and units, not EOS."""
    running = [(0.0, [bos])] + [(IMPOSSIBLE, [bos])] * (beams - 1)
    finished = []  # [(score, tokens without EOS)], worst first, of equal scores the earlier first

    def offer(total, tokens):
        score = total / len(tokens) ** length_penalty
        if len(finished) < beams or score > finished[0][0]:
            finished.append((score, tokens))
            finished.sort(key=lambda h: h[0])
            del finished[: max(0, len(finished) - beams)]

    length = 1
    while len(finished) < beams and length < max_length:
        survivors = []
        for rank, (score, tokens) in enumerate(candidates(next_log_probabilities, running, 2 * beams)):
            if tokens[-1] == eos:
                if rank < beams:
                    offer(score, tokens[:-1])
            else:
                survivors.append((score, tokens))
            if len(survivors) == beams:
                break
        running = survivors
        length += 1
    if len(finished) < beams:
        for score, tokens in running:
            offer(score, tokens)
    score, tokens = finished[-1]
    return tokens[1:], score
