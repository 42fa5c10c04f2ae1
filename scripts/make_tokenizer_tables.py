#!/usr/bin/env python3
"""Writes src/io/tokenizer_unicode_tables.inc: where our libraries' Unicode differs from that of `tokenizers`.

`tokenizers` matches by Oniguruma and Rust's regex (Unicode 16) and normalizes by an older table (Unicode 9); Debian 12
has PCRE2 10.42 (Unicode 14) and utf8proc 2.8 (Unicode 15). This asks the four of them about every code point. Run it on
Debian 12 with `pip install tokenizers`; only a newer Unicode in `tokenizers` makes that necessary.
"""
import ctypes
import pathlib

from tokenizers import Regex, normalizers, pre_tokenizers

OUT = pathlib.Path(__file__).resolve().parent.parent / 'src/io/tokenizer_unicode_tables.inc'
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = ['Lu', 'Ll', 'Lt', 'Lm', 'Lo', 'Mn', 'Mc', 'Me', 'Nd', 'Nl', 'No', 'Pc', 'Pd', 'Ps', 'Pe', 'Pi', 'Pf', 'Po',
              'Sm', 'Sc', 'Sk', 'So', 'Zs', 'Zl', 'Zp', 'Cc', 'Cf', 'Co']
SCRIPTS = ['Han', 'Hiragana', 'Katakana', 'Hangul', 'Latin', 'Greek', 'Cyrillic', 'Arabic', 'Hebrew', 'Thai', 'Devanagari']
PCRE2_UTF, PCRE2_UCP, NO_UTF_CHECK = 0x00080000, 0x00020000, 0x40000000
UTF8PROC_STABLE, COMPAT, COMPOSE, DECOMPOSE = 2, 4, 8, 16
FORMS = {'NFC': COMPOSE, 'NFD': DECOMPOSE, 'NFKC': COMPOSE | COMPAT, 'NFKD': DECOMPOSE | COMPAT}

pcre2 = ctypes.CDLL('libpcre2-8.so.0')
utf8proc = ctypes.CDLL('libutf8proc.so.2')
libc = ctypes.CDLL('libc.so.6')


def blocks():
    for i in range(0, len(CODE_POINTS), 65536):
        yield ''.join(map(chr, CODE_POINTS[i:i + 65536]))


def theirs(pattern):
    """The code points that a one-character pattern matches in `tokenizers`."""
    split = pre_tokenizers.Split(Regex(pattern), 'removed', invert=True)
    return {ord(c) for block in blocks() for piece, _ in split.pre_tokenize_str(block) for c in piece}


def ours(pattern):
    for name in ('compile', 'match_data_create_from_pattern'):
        getattr(pcre2, f'pcre2_{name}_8').restype = ctypes.c_void_p
    pcre2.pcre2_get_ovector_pointer_8.restype = ctypes.POINTER(ctypes.c_size_t)
    error, offset = ctypes.c_int(), ctypes.c_size_t()
    code = ctypes.c_void_p(pcre2.pcre2_compile_8(pattern.encode(), ctypes.c_size_t(len(pattern)), PCRE2_UTF | PCRE2_UCP,
                                                 ctypes.byref(error), ctypes.byref(offset), None))
    match = ctypes.c_void_p(pcre2.pcre2_match_data_create_from_pattern_8(code, None))
    ends = pcre2.pcre2_get_ovector_pointer_8(match)
    out = set()
    for block in blocks():
        text = block.encode()
        at = 0
        while pcre2.pcre2_match_8(code, text, ctypes.c_size_t(len(text)), ctypes.c_size_t(at), NO_UTF_CHECK, match, None) > 0:
            out.update(map(ord, text[ends[0]:ends[1]].decode()))
            at = ends[1]
    return out


def map_by_utf8proc(text, form):
    utf8proc.utf8proc_map.restype = ctypes.c_ssize_t
    raw, out = text.encode(), ctypes.c_void_p()
    size = utf8proc.utf8proc_map(raw, ctypes.c_ssize_t(len(raw)), ctypes.byref(out), UTF8PROC_STABLE | FORMS[form])
    text = ctypes.string_at(out, size).decode()
    libc.free(out)
    return text


def combining_class(code_point):
    class Property(ctypes.Structure):
        _fields_ = [('category', ctypes.c_int16), ('combining_class', ctypes.c_int16)]
    utf8proc.utf8proc_get_property.restype = ctypes.POINTER(Property)
    return utf8proc.utf8proc_get_property(code_point).contents.combining_class


def unknown_to_normalizer():
    """What utf8proc reorders, decomposes or composes, and the table of `tokenizers` does not."""
    nfd = normalizers.NFD()
    out = set()
    for c in CODE_POINTS:
        order = combining_class(c)
        if order:
            probe = 'a' + chr(c) + '\u0334' if order > 1 else 'a\u0301' + chr(c)
            if nfd.normalize_str(probe) == probe:
                out.add(c)
        for form in FORMS:
            if map_by_utf8proc(chr(c), form) != getattr(normalizers, form)().normalize_str(chr(c)):
                out.add(c)
                if form == 'NFD':  # and so its last part must not be composed
                    out.add(ord(map_by_utf8proc(chr(c), form)[-1]))
    return out


def ranges(code_points):
    out = []
    for c in sorted(code_points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def rows(pairs):
    line = '   '
    for text in pairs:
        if len(line) + len(text) > 98:
            yield line
            line = '   '
        line += ' ' + text
    yield line


def main():
    newer = ours(r'\p{Cn}+') - theirs(r'\p{Cn}')
    by_category = []
    for category in CATEGORIES:
        by_category += [(a, b, category) for a, b in ranges(theirs(rf'\p{{{category}}}') & newer)]
    by_script = []
    for script in SCRIPTS:
        by_script += [(a, b, script) for a, b in ranges(theirs(rf'\p{{{script}}}') - ours(rf'\p{{sc:{script}}}+'))]
    digits = {c for c in CODE_POINTS if c != ord('a') and
              len(pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str('a' + chr(c))) == 2}
    with OUT.open('w') as file:
        print('// Made by scripts/make_tokenizer_tables.py; do not edit.\n', file=file)
        print('// Assigned after PCRE2\'s Unicode 14.', file=file)
        print('constexpr NamedRange kNewer[] = {', file=file)
        print(*rows(f'{{0x{a:X}, 0x{b:X}, "{n}"}},' for a, b, n in sorted(by_category)), sep='\n', file=file)
        print('};\n\nconstexpr NamedRange kNewerInScript[] = {', file=file)
        print(*rows(f'{{0x{a:X}, 0x{b:X}, "{n}"}},' for a, b, n in by_script), sep='\n', file=file)
        print('};\n\n// Neither ordered, decomposed nor composed by the normalizers of `tokenizers`.', file=file)
        print('constexpr CodePointRange kUnknownToNormalizer[] = {', file=file)
        print(*rows(f'{{0x{a:X}, 0x{b:X}}},' for a, b in ranges(unknown_to_normalizer() - newer)), sep='\n', file=file)
        print('};\n\n// Numbers for the Digits pre-tokenizer (Rust\'s char::is_numeric), not for its regexes.', file=file)
        print('constexpr CodePointRange kOnlyDigitsSplitter[] = {', file=file)
        print(*rows(f'{{0x{a:X}, 0x{b:X}}},' for a, b in ranges(digits - theirs(r'\p{N}'))), sep='\n', file=file)
        print('};', file=file)


if __name__ == '__main__':
    main()
