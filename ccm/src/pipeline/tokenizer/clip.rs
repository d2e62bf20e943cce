//! CLIP's byte-pair encoding (arXiv 1508.07909, on the bytes of words), as transformers' `CLIPTokenizer` configures it.
//!
//! A text is normalized (NFC, single spaces, lower case) and split into words: runs of letters, single digits, runs of other
//! characters, and English endings such as `'s`. The bytes of a word are its first tokens; then the pair of tokens that comes
//! first in the list of merges becomes one token, until no pair is in the list.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use unicode_normalization_alignments::UnicodeNormalization as _;

use super::letters::is_letter;
use super::{Special, TokenizerError, fault};
use crate::model::json::Json;

/// Follows the last character of a word in the vocabulary.
const END_OF_WORD: &str = "</w>";

/// What the splitting takes as whole before anything else. The first two are split again, at the signs.
const WHOLE: [&str; 9] = ["<|startoftext|>", "<|endoftext|>", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// The place in the list and the merged token, by pair of tokens.
type Merges = BTreeMap<(u32, u32), (u32, u32)>;

/// CLIP's tokenizer.
pub(super) struct Clip {
    vocabulary: BTreeMap<String, u32>,
    merges: Merges,
    /// Tokens that are found in a text as it is, before it is normalized.
    special: Vec<(String, u32)>,
    begin: u32,
    end: u32,
    unknown: u32,
    padding: u32,
    /// Number of tokens of every text.
    length: usize,
}

/// A token of a word that is being merged.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Places of its neighbours.
    before: Option<usize>,
    after: Option<usize>,
    /// Whether it is part of the symbol before it.
    is_merged: bool,
}

impl Clip {
    /// Reads `vocab.json` and `merges.txt`.
    pub(super) fn new(
        vocabulary: &str,
        merges: &str,
        special: &Special,
        length: usize,
    ) -> Result<Self, TokenizerError> {
        let malformed = |reason: &dyn std::fmt::Display| fault(format!("vocab.json: {reason}"));
        let Json::Object(entries) = Json::parse(vocabulary).map_err(|error| malformed(&error))? else {
            return Err(malformed(&"expected an object"));
        };
        let mut vocabulary = BTreeMap::new();
        for (token, id) in entries {
            let id = id.whole().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| malformed(&format!("`{token}`: expected a whole number")))?;
            vocabulary.insert(token, id);
        }
        let id = |token: &String| {
            let id = vocabulary.get(token).copied();
            id.ok_or_else(|| malformed(&format!("expected the special token `{token}`")))
        };
        let (begin, end) = (id(&special.begin)?, id(&special.end)?);
        let (unknown, padding) = (id(&special.unknown)?, id(&special.padding)?);
        let all = [&special.begin, &special.end, &special.unknown, &special.padding];
        let special = all.into_iter().zip([begin, end, unknown, padding]);
        let special = special.filter(|(token, _)| !token.is_empty()).map(|(token, id)| (token.clone(), id));
        if length < 2 {
            return Err(fault(format!("expected a length of at least 2 tokens, found {length}")));
        }
        Ok(Self {
            merges: read_merges(merges, &vocabulary)?,
            special: special.collect(),
            vocabulary,
            begin,
            end,
            unknown,
            padding,
            length,
        })
    }

    /// The ids of a text's tokens, cut or padded to the length.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = vec![self.begin];
        let mut rest = text;
        while let Some((place, token, id)) = self.first_special(rest) {
            self.encode_plain(&rest[..place], &mut ids);
            ids.push(id);
            rest = &rest[place + token..];
        }
        self.encode_plain(rest, &mut ids);
        ids.truncate(self.length - 1);
        ids.push(self.end);
        ids.resize(self.length, self.padding);
        ids
    }

    /// The first special token in a text, the longest of those that begin there: its place, its length and its id.
    fn first_special(&self, text: &str) -> Option<(usize, usize, u32)> {
        let found = self.special.iter().filter_map(|(token, id)| Some((text.find(token)?, token.len(), *id)));
        found.min_by_key(|&(place, length, _)| (place, Reverse(length)))
    }

    /// Appends the tokens of a text without special tokens.
    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) {
        let normal = normalized(text);
        let mut rest = normal.as_str();
        while let Some(first) = rest.chars().next() {
            if first.is_whitespace() {
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let (word, after) = rest.split_at(word_len(rest, first));
            rest = after;
            match word.strip_prefix("<|").and_then(|word| word.strip_suffix("|>")) {
                Some(name) if WHOLE.contains(&word) => {
                    ["<|", name, "|>"].into_iter().for_each(|part| self.encode_word(part, ids));
                }
                _ => self.encode_word(word, ids),
            }
        }
    }

    /// Appends the tokens of a word.
    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let count = word.len();
        let mut symbols: Vec<Symbol> = word
            .bytes()
            .enumerate()
            .map(|(place, byte)| Symbol {
                id: self.first_token(byte, place + 1 == count),
                before: place.checked_sub(1),
                after: (place + 1 < count).then_some(place + 1),
                is_merged: false,
            })
            .collect();
        let pair = |symbols: &[Symbol], place: usize| {
            let after = symbols[place].after?;
            let &(rank, id) = self.merges.get(&(symbols[place].id, symbols[after].id))?;
            Some(Reverse((rank, place, id)))
        };
        let mut pairs: BinaryHeap<_> = (0..count).filter_map(|place| pair(&symbols, place)).collect();
        while let Some(Reverse((rank, place, id))) = pairs.pop() {
            // Symbols may have changed since the pair was found.
            if symbols[place].is_merged || pair(&symbols, place) != Some(Reverse((rank, place, id))) {
                continue;
            }
            let Some(merged) = symbols[place].after else { continue };
            symbols[merged].is_merged = true;
            let after = symbols[merged].after;
            (symbols[place].id, symbols[place].after) = (id, after);
            if let Some(after) = after {
                symbols[after].before = Some(place);
            }
            pairs.extend(pair(&symbols, place));
            pairs.extend(symbols[place].before.and_then(|before| pair(&symbols, before)));
        }
        ids.extend(symbols.iter().filter(|symbol| !symbol.is_merged).map(|symbol| symbol.id));
    }

    /// The token of a byte.
    fn first_token(&self, byte: u8, is_last: bool) -> u32 {
        let mut token = String::from(character(byte));
        if is_last {
            token.push_str(END_OF_WORD);
        }
        self.vocabulary.get(&token).copied().unwrap_or(self.unknown)
    }
}

/// Reads `merges.txt`: a pair a line, the first to be merged first.
fn read_merges(merges: &str, vocabulary: &BTreeMap<String, u32>) -> Result<Merges, TokenizerError> {
    let mut found = BTreeMap::new();
    let lines = merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty());
    for (rank, line) in lines.enumerate() {
        let malformed = |reason: &str| fault(format!("merges.txt: `{line}`: {reason}"));
        let (first, second) = line.split_once(' ').ok_or_else(|| malformed("expected two tokens"))?;
        let id = |token: &str| {
            let id = vocabulary.get(token).copied();
            id.ok_or_else(|| malformed(&format!("`{token}` is not in the vocabulary")))
        };
        let merge = (rank as u32, id(&format!("{first}{second}"))?);
        found.insert((id(first)?, id(second)?), merge);
    }
    Ok(found)
}

fn normalized(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    let mut in_space = false;
    for (character, _) in text.nfc() {
        match character.is_whitespace() {
            true if !in_space => normal.push(' '),
            true => {}
            false => normal.extend(character.to_lowercase()),
        }
        in_space = character.is_whitespace();
    }
    normal
}

/// Bytes of the word at the start of a text that begins with `first`, which is no space.
fn word_len(text: &str, first: char) -> usize {
    let is_other = |c: char| !c.is_whitespace() && !is_letter(c) && !c.is_numeric();
    let run = |is_inside: &dyn Fn(char) -> bool| text.find(|c| !is_inside(c)).unwrap_or(text.len());
    if let Some(whole) = WHOLE.iter().find(|whole| text.starts_with(**whole)) {
        return whole.len();
    }
    match first {
        _ if is_letter(first) => run(&is_letter),
        _ if first.is_numeric() => first.len_utf8(),
        _ => run(&is_other),
    }
}

/// The character that stands for a byte in the vocabulary: the byte itself if it is printable in Latin-1, otherwise one of the
/// characters from U+0100 on.
fn character(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    if is_printable(byte) {
        return char::from(byte);
    }
    let others = (0..byte).filter(|&other| !is_printable(other)).count() as u32;
    char::from_u32(0x100 + others).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::noise::Noise;

    /// A small vocabulary: every byte, alone and at the end of a word, some merges, and the special tokens. A few bytes are
    /// missing, and become the unknown token.
    fn files() -> (String, String) {
        let missing = [b'q', 0xf0];
        let bytes =
            || (0..=255u8).filter(|byte| !missing.contains(byte)).map(|byte| character(byte).to_string());
        let mut tokens: Vec<String> = bytes().chain(bytes().map(|token| token + END_OF_WORD)).collect();
        let merges = [
            "a b",
            "ab c</w>",
            "b c</w>",
            "a a",
            "aa aa",
            "aa a</w>",
            "t h",
            "th e</w>",
            "! !",
            "!! !</w>",
            "' s</w>",
            "Ã ©</w>",
            "o n",
            "b a",
            "< |</w>",
            "s t",
            "st a",
        ];
        tokens.extend(merges.iter().map(|merge| merge.replacen(' ', "", 1)));
        tokens.extend(["<|startoftext|>", "<|endoftext|>", "<pad>"].map(String::from));
        let vocabulary: serde_json::Map<_, _> =
            tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
        (json!(vocabulary).to_string(), format!("#version: 0.2\n{}\n", merges.join("\n")))
    }

    /// Texts of pieces that are special to the rules above, and of any characters.
    fn texts() -> Vec<String> {
        const PIECES: [&str; 34] = [
            "the",
            "abc",
            "aaaaaaa",
            "aaa",
            " ",
            "  ",
            "\t\n",
            "!",
            "!!!",
            "'s",
            "'S",
            "'ll",
            "'",
            "<|startoftext|>",
            "<|STARTOFTEXT|>",
            "<|endoftext|>",
            "<|EndOfText|>",
            "<|",
            "<pad>",
            "<PAD>",
            "é",
            "e\u{301}",
            "É",
            "İ",
            "ﬁ",
            "12",
            "½",
            "٣",
            "日本",
            "🐱\u{200d}👤",
            "\u{a0}",
            "\u{85}",
            "Σς",
            "q",
        ];
        let mut noise = Noise::new(9, 0);
        let mut texts = vec![String::new(), "a".repeat(1000)];
        for _ in 0..3000 {
            let count = 1 + noise.below(12);
            texts.push((0..count).map(|_| PIECES[noise.below(PIECES.len())]).collect());
            let any = (0..count).map(|_| {
                loop {
                    let most = [0x80, 0x800, 0x3000, 0x11_0000][noise.below(4)];
                    if let Some(found) = char::from_u32(noise.below(most) as u32) {
                        break found;
                    }
                }
            });
            texts.push(any.collect());
        }
        texts
    }

    #[test]
    fn tokens_are_those_of_the_crate_tokenizers() {
        let (vocabulary, merges) = files();
        for padding in ["<|endoftext|>", "!", "<pad>"] {
            let config = json!({ "pad_token": padding }).to_string();
            let config = Json::parse(&config).unwrap();
            let special = Special::read(&config).unwrap();
            let clip = Clip::new(&vocabulary, &merges, &special, 24).unwrap();
            let json = super::super::tests::clip_json(&vocabulary, &merges, &special);
            let other = super::super::Tokenizer::from_json(&json, &config, 24).unwrap();
            for text in texts() {
                assert_eq!(clip.encode(&text), other.encode(&text).unwrap(), "{text:?}, {padding}");
            }
        }
    }

    #[test]
    fn letters_and_numbers_are_those_of_regular_expressions() {
        use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
        use tokenizers::{
            OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior,
        };
        let is_assigned = |class: &str, all: &str| {
            let pattern = SplitPattern::Regex(class.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Removed, true).unwrap();
            let mut text = PreTokenizedString::from(all);
            split.pre_tokenize(&mut text).unwrap();
            let found = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
            found.iter().flat_map(|(text, ..)| text.chars()).collect::<String>()
        };
        let all: String = (1..=0x10_ffff).filter_map(char::from_u32).collect();
        let own = |is: &dyn Fn(char) -> bool| all.chars().filter(|&c| is(c)).collect::<String>();
        assert!(is_assigned(r"\p{L}+", &all) == own(&is_letter), "letters");
        assert!(is_assigned(r"\s+", &all) == own(&char::is_whitespace), "white space");
        let (found, expected) = (own(&char::is_numeric), is_assigned(r"\p{N}+", &all));
        // The standard library may be of a later version of Unicode.
        let later = found.chars().filter(|&c| !expected.contains(c)).count();
        assert!(expected.chars().all(char::is_numeric) && later < 50, "{later} numbers more");
    }

    #[test]
    fn faults_of_files_are_named() {
        let (vocabulary, merges) = files();
        let special = |text: &str| Special::read(&Json::parse(text).unwrap()).unwrap();
        let new = |vocabulary: &str, merges: &str, config: &str| {
            Clip::new(vocabulary, merges, &special(config), 24).err().unwrap().to_string()
        };
        for (found, expected) in [
            (new("[", &merges, "{}"), "vocab.json: byte 1"),
            (new("[]", &merges, "{}"), "vocab.json: expected an object"),
            (new(r#"{"a": 0.5}"#, &merges, "{}"), "vocab.json: `a`: expected a whole number"),
            (new(r#"{"a": 1}"#, &merges, "{}"), "the special token `<|startoftext|>`"),
            (new(&vocabulary, "ab", "{}"), "merges.txt: `ab`: expected two tokens"),
            (new(&vocabulary, "x y", "{}"), "merges.txt: `x y`: `xy` is not in the vocabulary"),
            (new(&vocabulary, &merges, r#"{"pad_token": "none"}"#), "the special token `none`"),
        ] {
            assert!(found.contains(expected), "{found}");
        }
        assert!(Clip::new(&vocabulary, &merges, &special("{}"), 1).is_err());
    }
}
