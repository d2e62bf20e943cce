//! Tokenizers of text encoders: CLIP's, and outside of the browser any other through the crate `tokenizers`.

mod clip;
mod letters;

#[cfg(not(target_arch = "wasm32"))]
use tokenizers::{PaddingParams, PaddingStrategy, TruncationParams};

use crate::model::json::Json;
use clip::Clip;

/// Splits a text into the tokens of a text encoder.
pub struct Tokenizer(Kind);

enum Kind {
    Clip(Clip),
    #[cfg(not(target_arch = "wasm32"))]
    Other(Box<tokenizers::Tokenizer>),
}

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(String);

fn fault(reason: impl ToString) -> TokenizerError {
    TokenizerError(reason.to_string())
}

/// The special tokens of a `tokenizer_config.json`.
struct Special {
    begin: String,
    end: String,
    unknown: String,
    padding: String,
}

impl Special {
    /// Reads the tokens; absent ones are CLIP's.
    fn read(config: &Json) -> Result<Self, TokenizerError> {
        let token = |key: &str, usual: &str| match config.get(key) {
            None | Some(Json::Null) => Ok(usual.to_owned()),
            // Some versions store a token with its properties.
            Some(value) => {
                let content = value.text().or(value.get("content").and_then(Json::text));
                content.map(str::to_owned).ok_or_else(|| fault(format!("{key}: expected a token")))
            }
        };
        let end = token("eos_token", "<|endoftext|>")?;
        Ok(Self {
            begin: token("bos_token", "<|startoftext|>")?,
            unknown: token("unk_token", &end)?,
            padding: token("pad_token", &end)?,
            end,
        })
    }
}

/// The files of a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// CLIP's byte-pair encoding.
    Clip {
        /// `vocab.json`.
        vocabulary: String,
        /// `merges.txt`.
        merges: String,
    },
    /// Any tokenizer: `tokenizer.json`.
    Json(String),
}

impl TokenizerFiles {
    /// Makes the tokenizer. Texts are padded or cut to `length` tokens. `config` is `tokenizer_config.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::clip`] and [`Tokenizer::from_json`].
    pub fn open(&self, config: &Json, length: usize) -> Result<Tokenizer, TokenizerError> {
        match self {
            Self::Clip { vocabulary, merges } => Tokenizer::clip(vocabulary, merges, config, length),
            Self::Json(text) => Tokenizer::from_json(text, config, length),
        }
    }

    /// The files by name.
    pub fn by_name(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Clip { vocabulary, merges } => vec![(VOCABULARY, vocabulary), (MERGES, merges)],
            Self::Json(text) => vec![(WHOLE, text)],
        }
    }

    /// Reads the files: CLIP's two if they are there, otherwise `tokenizer.json`. `read` returns `None` for a file that is not
    /// there.
    ///
    /// # Errors
    /// If a file cannot be read, or there is neither.
    pub fn find<E: From<TokenizerError>>(
        mut read: impl FnMut(&str) -> Result<Option<String>, E>,
    ) -> Result<Self, E> {
        if let Some(vocabulary) = read(VOCABULARY)? {
            let merges = read(MERGES)?.ok_or_else(|| fault(format!("expected {MERGES}, found none")))?;
            return Ok(Self::Clip { vocabulary, merges });
        }
        let neither = || fault(format!("expected {WHOLE}, or {VOCABULARY} and {MERGES}, found neither"));
        Ok(Self::Json(read(WHOLE)?.ok_or_else(neither)?))
    }
}

const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const WHOLE: &str = "tokenizer.json";

impl Tokenizer {
    /// CLIP's byte-pair encoding, from `vocab.json`, `merges.txt` and `tokenizer_config.json`. Texts are padded or cut to
    /// `length` tokens.
    ///
    /// # Errors
    /// If a file is malformed, or a special token is not in the vocabulary.
    pub fn clip(
        vocabulary: &str,
        merges: &str,
        config: &Json,
        length: usize,
    ) -> Result<Self, TokenizerError> {
        let special = Special::read(config)?;
        Ok(Self(Kind::Clip(Clip::new(vocabulary, merges, &special, length)?)))
    }

    /// Any tokenizer, from `tokenizer.json` and `tokenizer_config.json`. Texts are padded or cut to `length` tokens.
    ///
    /// # Errors
    /// If a file is malformed, or the padding token is not in the vocabulary. In a browser, always: T5's tokenizer, which is
    /// the one with such a file, is too large for a page.
    #[cfg(target_arch = "wasm32")]
    pub fn from_json(_: &str, _: &Json, _: usize) -> Result<Self, TokenizerError> {
        Err(fault("a page reads only CLIP's; `distill import --without-t5` leaves T5 out"))
    }

    /// Any tokenizer, from `tokenizer.json` and `tokenizer_config.json`. Texts are padded or cut to `length` tokens.
    ///
    /// # Errors
    /// If a file is malformed, or the padding token is not in the vocabulary.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn from_json(text: &str, config: &Json, length: usize) -> Result<Self, TokenizerError> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(text).map_err(fault)?;
        let padding = match config.get("pad_token") {
            None | Some(Json::Null) => tokenizer.get_padding().map(|padding| padding.pad_token.clone()),
            Some(_) => Some(Special::read(config)?.padding),
        };
        let padding = padding.ok_or_else(|| fault("pad_token: expected a token, found none"))?;
        let id = tokenizer.token_to_id(&padding);
        let id = id.ok_or_else(|| fault(format!("pad_token: `{padding}` is not in the vocabulary")))?;
        tokenizer.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::Fixed(length),
            pad_id: id,
            pad_token: padding,
            ..PaddingParams::default()
        }));
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(fault)?;
        Ok(Self(Kind::Other(Box::new(tokenizer))))
    }

    /// The ids of a text's tokens.
    ///
    /// # Errors
    /// If a part of the text has no token and the vocabulary has none for unknown parts.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.0 {
            Kind::Clip(clip) => Ok(clip.encode(text)),
            #[cfg(not(target_arch = "wasm32"))]
            Kind::Other(tokenizer) => Ok(tokenizer.encode(text, true).map_err(fault)?.get_ids().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    /// CLIP's byte-pair encoding for the crate `tokenizers`, as transformers' `CLIPTokenizer` configures it.
    pub(super) fn clip_json(vocabulary: &str, merges: &str, special: &Special) -> String {
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(vocabulary).unwrap();
        let merges: Vec<&str> =
            merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty()).collect();
        let id = |token: &str| vocabulary[token].as_u64().unwrap();
        let mut tokens: Vec<&String> = Vec::new();
        for token in [&special.begin, &special.end, &special.unknown, &special.padding] {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        let mut added = Vec::new();
        for token in tokens {
            added.push(json!({
                "id": id(token),
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": true,
            }));
        }
        let pattern = "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
                { "type": "Lowercase" },
            ] },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Removed", "invert": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ] },
            "post_processor": {
                "type": "RobertaProcessing",
                "sep": [special.end, id(&special.end)],
                "cls": [special.begin, id(&special.begin)],
                "trim_offsets": false,
                "add_prefix_space": false,
            },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": special.unknown,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "</w>",
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocabulary,
                "merges": merges,
            },
        });
        json.to_string()
    }
}
