#!/usr/bin/env python3
"""Writes tests/io/tokenizer/: small tokenizers of each style and what their own libraries make of awkward texts.

Needs `pip install tokenizers tiktoken` (made with 0.23.3 and 0.14.0). For each STYLE.json there is STYLE.jsonl, a case a
line: text, ids (with the post-processor), ids_no_special, and decode_ids with decoded (special tokens left out) and
decoded_with_special, both with ill-formed bytes replaced. llama3.ranks is a tiktoken rank file, its cases llama3.ranks.jsonl.
"""
import base64
import json
import pathlib
import random
import unicodedata

import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parent.parent / 'tests/io/tokenizer'
GOLDEN = OUT.parents[3] / 'shared/golden/tokenizer/cases.jsonl'
GOLDEN_BYTES = 45_000
CASES = 31

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r'\s+(?!\S)|\s+')
QWEN2 = LLAMA3.replace('{1,3}', '')
UPPER, LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
LLAMA4 = (rf'[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}|'
          r'\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+')
# Nested classes, intersections, possessive repeats, look-behind, word boundaries, lazy and counted repeats.
UNUSUAL = (r"(?<=\d)\p{L}{1,2}+|[\p{Han}\p{Hiragana}ー]+?(?=\P{Han}|\z)|[\p{L}&&[^\p{Han}\p{Lu}]]++|\bA\w*?\b|"
           r"[^\S\n[\p{N}a-f]]+|'(?i:[sdmt]|ll)|\p{^N}(?!\p{L}|\h)|[\w&&\W]|.|\R")

WORDS = """the and of to in that was his with for you not had from they this have but were which the their them when said there
would what will into been more some could like time only other about then little very over before through people after
should great never where those made first also long down such even because under house world come hand place right away
number token model state hello Hello HELLO iPhone McDonald's don't we're I'll can't 2024 1999 100 3.14 def return self
été élève naïve Ångström größer señor привет мир Москва ελληνικά γλώσσα 日本語 中文 漢字 한국어 사람 हिन्दी العربية עברית ไทย
tiếng việt 😀 👩‍👩‍👧 🇩🇪 (x) [y] {z} == != -> // /* */ <b> </b> http://www.example.com/?q=1&r=2 a@b.c""".split()
SPACES = ['\t', '\n', '\v', '\f', '\r', '\r\n', ' ', '  ', '    ', '\n\n', '\x85', '\xa0', '\u1680', '\u180e', '\u2003', '\u200b',
          '\u2028', '\u2029', '\u202f', '\u3000', '\ufeff']
ODD = ["'s", "'S", "'ſ", "'LL", "’s", "''", '٣٤', '१२३', 'Ⅷ', '½', '²', '①', '𝟘𝟙', '\u0345', '\u03b1\u0345', 'ß', 'ſ', 'İ', 'ǅ', 'ʰ', 'ª',
       '\U00020000', '\u1c89', '\ua7cd', '\U00010d4a', '\U00010d40', '\U00011f04', '\U0001e030', '\U00031350', '\U0001ccf0',
       '\u0897', '\U0001faea', '\u0378', '\ue000', '\uffff', '\ufffd', '\x00', '\x7f', '\u200d', '\ufe0f', '\u1112\u1161\u11ab',
       'e\u0301', 'é\u0323', 'o\u0323\u0302', '\u0915\u093c', '\u212b', '\ufb01', '\u0308\u0301', '\ud55c\u11a8', '\u0f73', '\u1e9b\u0323',
       '\U00011935\U00011930', 'a\u0898\u0316', '\ufdfa', '<|', '|>', '<|end', '...', '--', '\\', '/\n', '!?\r\n', '(\n\n']
FIXED = ['', ' ', '\n', ' a', 'a ', 'a  b', 'a   ', '   a', '\n\n  x', 'x \n y', "it's IT'S it'ſ", '12345678', 'abc123def', 'a' * 600,
         ' ' * 90 + 'x', '\r\n' * 20, 'aB' * 50, '!' * 70]


def texts(rng, special):
    yield from FIXED
    everything = special + special
    for _ in range(CASES):
        parts = []
        for _ in range(rng.randrange(1, 14)):
            kind = rng.randrange(10)
            if kind < 3:
                parts.append(' ' * rng.randrange(2) + rng.choice(WORDS))
            elif kind < 5:
                parts.append(rng.choice(SPACES))
            elif kind < 7:
                parts.append(rng.choice(ODD))
            elif kind == 7 and everything:
                parts.append(rng.choice(everything))
            elif kind == 8:
                base = rng.choice('aeounA') if rng.random() < .5 else chr(rng.randrange(0xC0, 0x250))
                parts.append(base + ''.join(chr(rng.randrange(0x300, 0x346)) for _ in range(rng.randrange(1, 4))))
            else:
                code_point = rng.randrange(0x110000)
                parts.append(chr(code_point) if unicodedata.category(chr(code_point)) != 'Cs' else rng.choice(WORDS))
        yield ''.join(parts)


def training_text():
    rng = random.Random(0)
    return [' '.join(rng.choice(WORDS) for _ in range(12)) + rng.choice(['.', '!\n', '\n\n', '  ', ', ']) for _ in range(1500)]


def split(pattern, behavior='isolated', invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)


def byte_level(prefix=False, regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def sequence(*parts):
    return pre_tokenizers.Sequence(list(parts))


def train(pre_tokenizer, normalizer=None, special=(), size=420):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tokenizer


def changed(tokenizer, change):
    """The tokenizer after a change of its JSON."""
    spec = json.loads(tokenizer.to_str())
    change(spec)
    return Tokenizer.from_str(json.dumps(spec)), spec


def styles():
    """(name, tokenizer, JSON or None for the tokenizer's own)"""
    t = train(byte_level(regex=True), special=['<|endoftext|>'])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t, spec = changed(t, lambda s: s['model'].update(merges=[' '.join(m) for m in s['model']['merges']], unk_token=''))
    yield 'gpt2', t, spec

    t = train(byte_level(regex=True), normalizers.NFC(), ['<|endoftext|>', '<|padding|>'])
    t.add_tokens([AddedToken(' ' * n, normalized=True) for n in range(24, 1, -1)])
    t.post_processor = processors.TemplateProcessing('$A <|endoftext|>', None, [('<|endoftext|>', 0)])
    yield 'neox', t, None

    t = train(sequence(split(LLAMA3), byte_level()))
    t.add_special_tokens(['<|begin_of_text|>', '<|end_of_text|>', '<|reserved_special_token_0|>', '<|eot_id|>'])
    bos = t.token_to_id('<|begin_of_text|>')
    # A token that no merges lead to, as ignore_merges is for.
    t, _ = changed(t, lambda s: (s['model'].update(ignore_merges=True), s['model']['merges'].pop(5)))
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing(
        '<|begin_of_text|> $A', None, [('<|begin_of_text|>', bos)])])
    yield 'llama3', t, None

    t = train(sequence(split(LLAMA4), byte_level()))
    t.add_special_tokens(['<|begin_of_text|>', '<|end_of_text|>', '<|eot|>'])
    bos = t.token_to_id('<|begin_of_text|>')
    t.post_processor = processors.TemplateProcessing(
        '<|begin_of_text|> $A <|eot|>', None, [('<|begin_of_text|>', bos), ('<|eot|>', bos + 2)])
    yield 'llama4', t, None

    t = train(sequence(split(QWEN2), byte_level()), normalizers.NFC())
    t.add_special_tokens(['<|endoftext|>', '<|im_start|>', '<|im_end|>'])
    t.add_tokens([AddedToken('<tool_call>', normalized=False), AddedToken('<think>', normalized=True),
                  AddedToken('e\u0301!', normalized=True)])
    yield 'qwen2', t, None

    # Added tokens of every kind, overlapping; a prefix; RoBERTa's post-processor.
    t = train(byte_level(prefix=True, regex=True), special=['<s>', '</s>'], size=300)
    t.post_processor = processors.RobertaProcessing(('</s>', 1), ('<s>', 0))
    t.add_tokens([AddedToken('cat', single_word=True, normalized=False), AddedToken('the', single_word=True, lstrip=True),
                  AddedToken('<a>', rstrip=True, normalized=False), AddedToken('<b>', lstrip=True, rstrip=True, normalized=False),
                  AddedToken('<ab>', lstrip=True, rstrip=True), AddedToken('  ', normalized=False),
                  AddedToken('<a><b', normalized=False), AddedToken('ab'), AddedToken('abc'), AddedToken('bcd'),
                  AddedToken('é', normalized=False), AddedToken('日本', single_word=True, normalized=False)])
    t.add_special_tokens([AddedToken('<sp>', lstrip=True, rstrip=True, single_word=True, normalized=True),
                          AddedToken('<mask>', lstrip=True, normalized=False)])
    yield 'added', t, None

    # Splits of every kind behind one another.
    t = train(sequence(pre_tokenizers.Digits(individual_digits=True), split(r'[,.]', 'merged_with_previous'),
                       split(r'[(\[{<]', 'merged_with_next'), split(r'\p{P}', 'contiguous'), split(r'-', 'removed'),
                       split(r'\w+', 'isolated', True), pre_tokenizers.Split('th', 'isolated'), byte_level()), size=300)
    t.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    yield 'splits', t, None

    t = train(sequence(split(UNUSUAL), byte_level(prefix=True)), size=300, normalizer=normalizers.Sequence(
        [normalizers.Replace(Regex(r'\s{3,}'), '\n'), normalizers.NFKC(), normalizers.Replace("''", '"'), normalizers.Prepend('^')]))
    t, spec = changed(t, lambda s: s.update(decoder=None))
    yield 'unusual', t, spec

    t = train(byte_level(regex=True), normalizers.NFD(), size=270)
    t.decoder = decoders.Fuse()
    yield 'nfd', t, None


def write_cases(name, cases):
    with (OUT / f'{name}.jsonl').open('w') as file:
        for case in cases:
            print(json.dumps(case, separators=(',', ':')), file=file)


def json_cases(tokenizer, rng):
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    known = [i for i in range(tokenizer.get_vocab_size()) if tokenizer.id_to_token(i) is not None]
    for text in texts(rng, special):
        ids = tokenizer.encode(text).ids
        decode_ids = ids if rng.random() < .6 else [rng.choice(known) for _ in range(rng.randrange(9))]
        yield {'text': text, 'ids': ids, 'ids_no_special': tokenizer.encode(text, add_special_tokens=False).ids,
               'decode_ids': decode_ids, 'decoded': tokenizer.decode(decode_ids),
               'decoded_with_special': tokenizer.decode(decode_ids, skip_special_tokens=False)}


def rank_cases(encoding, first_special, rng):
    for text in texts(rng, ['<|eot_id|>', '<|reserved_special_token_250|>', '<|begin_of_text|>', '<|start_header_id|>']):
        ids = encoding.encode(text, allowed_special='all')
        decode_ids = [first_special] + ids
        yield {'text': text, 'ids': decode_ids, 'ids_no_special': ids, 'decode_ids': decode_ids,
               'decoded': encoding.decode([i for i in ids if i < first_special]),
               'decoded_with_special': encoding.decode(decode_ids)}


def write_ranks(tokenizer):
    """A rank file with the vocabulary of a tokenizer: bytes first, then by the order of their merges."""
    letters = {}
    extra = 256
    for byte in range(256):
        printable = 33 <= byte <= 126 or byte >= 161 and byte != 173
        letters[chr(byte if printable else extra)] = byte
        extra += not printable
    tokens = [bytes(letters[c] for c in a + b) for a, b in json.loads(tokenizer.to_str())['model']['merges']]
    tokens = [bytes([i]) for i in range(256)] + list(dict.fromkeys(tokens))
    ranks = {token: i for i, token in enumerate(tokens)}
    (OUT / 'llama3.ranks').write_text(''.join(f'{base64.b64encode(t).decode()} {r}\n' for t, r in ranks.items()))
    names = (['begin_of_text', 'end_of_text'] + [f'reserved_special_token_{i}' for i in range(4)] +
             ['start_header_id', 'end_header_id', 'reserved_special_token_4', 'eot_id'] +
             [f'reserved_special_token_{i}' for i in range(5, 251)])
    return len(ranks), tiktoken.Encoding('llama3', pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={
        f'<|{name}|>': len(ranks) + i for i, name in enumerate(names)})


def golden_part():
    """The shorter of the shared cases, spread over the file."""
    cases = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    cases = [c for c in cases if len(json.dumps(c)) < 1200]
    size = 0
    for case in random.Random(1).sample(cases, len(cases)):
        size += len(json.dumps(case, separators=(',', ':')))
        if size < GOLDEN_BYTES:
            yield case


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for number, (name, tokenizer, spec) in enumerate(styles()):
        text = tokenizer.to_str() if spec is None else json.dumps(spec, ensure_ascii=False, separators=(',', ':'))
        (OUT / f'{name}.json').write_text(text + '\n')
        write_cases(name, json_cases(tokenizer, random.Random(number)))
    first_special, encoding = write_ranks(train(sequence(split(LLAMA3), byte_level()), size=500))
    write_cases('llama3.ranks', rank_cases(encoding, first_special, random.Random(99)))
    if GOLDEN.exists():
        write_cases('bundled', golden_part())


if __name__ == '__main__':
    main()
