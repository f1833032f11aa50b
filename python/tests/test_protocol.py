"""The protocols against the tables of the Rust tests (`spans/tests/self_span.rs`, `declarative.rs`)."""

import itertools
import random
import unittest
from collections import Counter

from spanforge import DeclarativeAttention, Fallback, Fault, PromptLayout, SelfSpanAttention
from spanforge.errors import ProtocolError
from spanforge.protocol.declarative import GLOBAL, LOCAL
from spanforge.spans import canonical, tokens

BOTH = (Fallback.DENSE, Fallback.EMPTY)


def by_character(prompt, text, fallback=Fallback.DENSE):
    """The spans after every character, one token each."""
    state = SelfSpanAttention(prompt, fallback=fallback)
    spans = []
    for c in text:
        state.push_token(c)
        spans.append(state.spans())
    return state, spans


class SelfSpan(unittest.TestCase):
    def test_the_worked_example(self):
        response = "a<8-2>8-2=6;b<1*9>1*9=9;c<a+b>6+9=15;d<c+4>15+4=19;$"
        prompt = len("^(((8-2)+(1*9))+4);")
        state, spans = by_character(prompt, response)
        # Lines: prompt [0, 19), a [19, 31), b [31, 43), c [43, 56), d [56, 70), $ 70.
        for token, text, expected in [
            (19, "a", [(0, 20)]),
            (23, "2", [(0, 24)]),
            (24, ">", [(0, 1), (19, 25)]),
            (29, "6", [(0, 1), (19, 30)]),
            (30, ";", [(0, 31)]),
            (31, "b", [(0, 19), (31, 32)]),
            (42, ";", [(0, 19), (31, 43)]),
            (47, "b", [(0, 19), (43, 48)]),
            (48, ">", [(0, 1), (19, 49)]),
            (54, "5", [(0, 1), (19, 55)]),
            (61, ">", [(0, 1), (43, 62)]),
            (69, ";", [(0, 19), (56, 70)]),
            (70, "$", [(0, 19), (70, 71)]),
        ]:
            self.assertEqual((response[token - 19], spans[token - 19]), (text, expected), token)
        self.assertEqual((state.steps, state.is_finished, state.kv_len), (4, True, 71))

    def test_tokens_of_several_characters_and_named_prompt_spans(self):
        state = SelfSpanAttention(30, {"s1": (4, 12), "s2": (12, 28)})
        for text, changed, expected in [
            (" first", False, [(0, 31)]),
            (" <", False, [(0, 32)]),
            (" s2 >", True, [(0, 1), (12, 28), (30, 33)]),
            (" Rain", False, [(0, 1), (12, 28), (30, 34)]),
            (".;\n", True, [(0, 35)]),
            ("then<first s1>", True, [(0, 1), (4, 12), (30, 36)]),
            ("sun;last<", True, [(0, 30), (34, 37)]),
            ("then", True, [(0, 30), (36, 38)]),
            (">", True, [(0, 1), (34, 39)]),
        ]:
            self.assertEqual((state.push_token(text), state.spans()), (changed, expected), text)
        self.assertEqual((state.steps, state.faults.total(), state.kv_len), (2, 0, 39))

    def test_malformed_steps_are_counted_and_resolved(self):
        # Prompt of 5 tokens. The spans are those behind the last character of each text.
        for text, fault, dense, empty in [
            ("a<b>", Fault.UNKNOWN_REFERENCE, [(0, 9)], [(0, 1), (5, 9)]),
            ("a<a>", Fault.UNKNOWN_REFERENCE, [(0, 9)], [(0, 1), (5, 9)]),
            ("a<1>;b<a+c>", Fault.UNKNOWN_REFERENCE, [(0, 16)], [(0, 1), (5, 16)]),
            ("a<1<2", Fault.NESTED, [(0, 10)], [(0, 1), (5, 10)]),
            ("a>1", Fault.UNMATCHED_CLOSE, [(0, 8)], [(0, 1), (5, 8)]),
            ("<1>", Fault.MISSING_NAME, [(0, 1), (5, 8)], [(0, 1), (5, 8)]),
            ("1<1>", Fault.MISSING_NAME, [(0, 1), (5, 9)], [(0, 1), (5, 9)]),
            ("a;", Fault.MISSING_DECLARATION, [(0, 7)], [(0, 7)]),
            ("a<1;b", Fault.UNFINISHED, [(0, 5), (9, 10)], [(0, 5), (9, 10)]),
            ("a<1>;a<1>;b<a>", Fault.REDEFINED_NAME, [(0, 1), (10, 19)], [(0, 1), (10, 19)]),
            (f"a<{'1' * 300}>", Fault.TOO_LONG, [(0, 308)], [(0, 1), (5, 308)]),
        ]:
            for fallback, expected in zip(BOTH, (dense, empty)):
                state, spans = by_character(5, text, fallback)
                self.assertEqual((state.faults, spans[-1]), (Counter([fault]), expected), text)
        # The fallback ends with the step.
        self.assertEqual(by_character(5, "a<x>;b")[1][-1], [(0, 5), (10, 11)])

    def test_growth_under_the_dense_fallback_is_no_change(self):
        state = SelfSpanAttention(5)
        changed = [state.push_token(c) for c in "a<x>12;"]
        self.assertEqual(changed, [False] * 7)
        # The next step does not see this one.
        self.assertTrue(state.push_token("b"))

    def test_an_unfinished_step_is_counted_when_the_response_ends(self):
        for text, faults in [("a<1>;$", 0), ("a<1>;", 0), (" ", 0), ("a", 1), ("a<1>2", 1)]:
            state, _ = by_character(5, text)
            state.finish()
            self.assertEqual(state.faults[Fault.UNFINISHED], faults, text)

    def test_names_of_the_prompt_are_checked(self):
        SelfSpanAttention(8, {"a": (0, 8), "b_2": (3, 3), "ß": (0, 1)})
        for name, span in [("2b", (0, 1)), ("", (0, 1)), ("a b", (0, 1)), ("a", (0, 9)), ("a", (2, 1))]:
            with self.assertRaisesRegex(ProtocolError, "name|prompt's 8"):
                SelfSpanAttention(8, {name: span})
        with self.assertRaises(ProtocolError):
            SelfSpanAttention(-1)

    def test_the_machine_agrees_with_the_definition(self):
        for seed in range(200):
            draw = random.Random(seed)
            prompt, text = draw.randrange(1, 30), well_formed(draw)
            self.assertEqual(by_character(prompt, text)[1], by_definition(prompt, text), text)

    def test_cutting_the_text_declares_the_same(self):
        """However the text is cut into tokens, a token attends to what its last character attends to,
        and to more only where tokens cross the end of a line."""
        prompt = 5
        for seed in range(300):
            draw = random.Random(seed)
            text = well_formed(draw) if seed % 2 else "".join(draw.choices("abc1<>;$ +", k=30))
            fallback = draw.choice(BOTH)
            plain, characters = by_character(prompt, text, fallback)
            at_line_ends = draw.random() < 0.5
            ends = {0, len(text), *draw.choices(range(len(text) + 1), k=draw.randrange(15))}
            if at_line_ends:
                ends |= {at + 1 for at, c in enumerate(text) if c == ";"}
            ends = sorted(ends)
            state = SelfSpanAttention(prompt, fallback=fallback)
            for start, end in itertools.pairwise(ends):
                grown = state.spans()
                changed = state.push_token(text[start:end])
                grown = canonical([*grown, (state.kv_len - 1, state.kv_len)])
                self.assertEqual(changed, state.spans() != grown, (text, ends))
                expanded = set()
                for token in tokens(state.spans()):
                    at = token - prompt
                    expanded |= {token} if at < 0 else set(range(prompt + ends[at], prompt + ends[at + 1]))
                exact = set(tokens(characters[end - 1]))
                self.assertLessEqual(exact, expanded, (text, ends))
                if at_line_ends:
                    self.assertEqual(exact, expanded, (text, ends))
            state.finish()
            plain.finish()
            self.assertEqual((state.faults, state.steps), (plain.faults, plain.steps), text)


def well_formed(draw):
    """Each step refers to up to two earlier steps or digits."""
    text = ""
    for step in range(draw.randrange(8)):
        names = [chr(ord("a") + earlier) for earlier in range(step)] + [str(draw.randrange(10))]
        a, b = draw.choice(names), draw.choice(names)
        text += f"{chr(ord('a') + step)}<{a}+{b}>1+2={draw.randrange(100)};"
    return text + "$"


def by_definition(prompt, text):
    """Token j is attended by i if it is the first token, on the same line, or on a line in the scope
    of i. Line 0 is the prompt."""
    line_of, scope_of = [0] * prompt, [{0}] * prompt
    for step, line in enumerate(part + ";" for part in text.removesuffix("$").split(";")[:-1]):
        close = line.index(">")
        declared = {ord(c) - ord("a") + 1 for c in line[line.index("<") : close] if c.islower()}
        for at, c in enumerate(line):
            line_of.append(step + 1)
            scope_of.append({0} if at < close or c == ";" else declared)
    line_of.append(max(line_of) + 1)
    scope_of.append({0})
    return [
        canonical(
            (j, j + 1)
            for j in range(i + 1)
            if j == 0 or line_of[j] == line_of[i] or line_of[j] in scope_of[i]
        )
        for i in range(prompt, len(line_of))
    ]


def small():
    """Six segments of 10 tokens between 20 and 100, question from 100, prompt of 120."""
    return PromptLayout([(20 + 12 * i, 30 + 12 * i) for i in range(6)], 100, 120)


def run(text, fallback=Fallback.DENSE):
    state = DeclarativeAttention(small(), fallback)
    state.push_token(text)
    return state


class Declarative(unittest.TestCase):
    def test_figure_1_of_the_paper(self):
        segments, at = [], 178
        for length in [2311, *[1948] * 9, 1951, 2086]:
            segments.append((at + 25, at + 25 + length))
            at += 25 + length
        state = DeclarativeAttention(PromptLayout(segments, 25_466 - 1108, 25_466))
        steps = [
            ("Let me see. ", False, 25_466),
            ('<focus magic_chunks="1"', False, 25_466),
            (">", True, 3435),
            ("evidence", False, 3435),
            ("</focus>", True, 25_466),
            ("<local>", True, 1124),
            ("so", False, 1124),
            ("</local>", True, 25_466),
        ]
        for response, (text, changed, prompt) in enumerate(steps, 1):
            self.assertEqual(state.push_token(text), changed, text)
            self.assertEqual(len(tokens(state.spans())), prompt + response, text)
            self.assertEqual(state.kv_len, 25_466 + response)
        state.finish()
        self.assertEqual(state.faults, Counter())

    def test_spans_by_hand(self):
        for text, expected in [
            ("no tag", [(0, 121)]),
            ("<local>", [(0, 16), (100, 121)]),
            ('<focus magic_chunks="2">', [(0, 16), (32, 42), (100, 121)]),
            (
                "<focus magic_chunks = '6, 1,2'>",
                [(0, 16), (20, 30), (32, 42), (80, 90), (100, 121)],
            ),
        ]:
            self.assertEqual(run(text).spans(), expected, text)

    def test_tags_that_change_nothing(self):
        for text in [
            "<global>",
            "</global>",
            "<answer>4</answer>",
            "a < b > c",
            "<focused>",
            "<<>>",
            "<local",
        ]:
            state = run(text, Fallback.EMPTY)
            self.assertEqual((state.mode, state.faults), (GLOBAL, Counter()), text)
        # Neither does the global tag inside another mode.
        self.assertEqual(run("<local><global>").mode, LOCAL)

    def test_malformed_tags_are_counted_and_resolved(self):
        for text, fault, dense in [
            ("<focus>", Fault.BAD_ATTRIBUTE, GLOBAL),
            ("<focus magic_chunks=1>", Fault.BAD_ATTRIBUTE, GLOBAL),
            ('<focus magic_chunks="">', Fault.BAD_ATTRIBUTE, GLOBAL),
            ('<focus magic_chunks="1,">', Fault.BAD_ATTRIBUTE, GLOBAL),
            ('<focus magic_chunks="+1">', Fault.BAD_ATTRIBUTE, GLOBAL),
            ('<focus magic_chunks=">', Fault.BAD_ATTRIBUTE, GLOBAL),
            ('<focus magic_chunks="1,2,3,4">', Fault.BAD_ATTRIBUTE, GLOBAL),
            ("<local/>", Fault.BAD_ATTRIBUTE, GLOBAL),
            ('<focus magic_chunks="0">', Fault.UNKNOWN_REFERENCE, GLOBAL),
            ('<focus magic_chunks="1,7">', Fault.UNKNOWN_REFERENCE, GLOBAL),
            ('<focus magic_chunks="99999999999999999999">', Fault.UNKNOWN_REFERENCE, GLOBAL),
            ("</focus>", Fault.UNMATCHED_CLOSE, GLOBAL),
            ("<local></focus>", Fault.UNMATCHED_CLOSE, LOCAL),
            ('<focus magic_chunks="1"><local>', Fault.NESTED, LOCAL),
            ("<focus magic<local>", Fault.UNFINISHED, LOCAL),
            (f"<local>x<focus {'a' * 200}", Fault.TOO_LONG, LOCAL),
        ]:
            state = run(text)
            self.assertEqual((state.faults, state.mode), (Counter([fault]), dense), text)
            # Where the fault lies in an opening tag, the other fallback selects no segment.
            if fault in (Fault.BAD_ATTRIBUTE, Fault.UNKNOWN_REFERENCE):
                self.assertEqual(run(text, Fallback.EMPTY).mode, LOCAL, text)
        # The closing tag of a malformed one is expected, not a second fault.
        state = run('<focus magic_chunks="9">x</focus>', Fallback.EMPTY)
        self.assertEqual((state.faults.total(), state.mode), (1, GLOBAL))
        state = run("<local><focus ")
        state.finish()
        self.assertEqual(state.faults, Counter({Fault.UNFINISHED: 2}))

    def test_layouts_are_checked(self):
        with self.assertRaisesRegex(ProtocolError, "question starts at token 9 .* 8 tokens"):
            PromptLayout([], 9, 8)
        for segments in [[(2, 4), (3, 5)], [(0, 1), (4, 4)], [(0, 1), (7, 9)]]:
            with self.assertRaisesRegex(ProtocolError, r"segment 2 is \["):
                PromptLayout(segments, 8, 10)
        # A prompt shorter than the sink.
        self.assertEqual(PromptLayout([], 3, 5).attended(LOCAL), [(0, 5)])

    def test_cutting_the_text_changes_nothing(self):
        pieces = [
            '<focus magic_chunks="1">',
            '<focus magic_chunks="2,3">',
            '<focus magic_chunks="8">',
            *["<focus magic", "</focus>", "<local>", "</local>", "<local >", "<global>", "</global>"],
            *["<", ">", "/", '"', "focus", "local>", " und so weiter ", "ö→"],
        ]
        for seed in range(300):
            draw = random.Random(seed)
            text = "".join(draw.choices(pieces, k=draw.randrange(12)))
            whole = run(text)
            state = DeclarativeAttention(small())
            ends = sorted({0, len(text), *draw.choices(range(len(text) + 1), k=15)})
            for start, end in itertools.pairwise(ends):
                before = state.mode
                self.assertTrue(state.push_token(text[start:end]) or state.mode == before, text)
            self.assertEqual(state.transitions, whole.transitions, text)
            self.assertEqual((state.faults, state.mode), (whole.faults, whole.mode), text)
            self.assertTrue(all(text[at - 1] == ">" for at, _ in state.transitions), text)


if __name__ == "__main__":
    unittest.main()
