//! Tokenizers of text encoders, through the crate `tokenizers`.

use serde_json::json;
use tokenizers::{PaddingParams, PaddingStrategy, TruncationParams};

use crate::model::json::Json;

/// Splits a text into the tokens of a text encoder.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
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
        Self::from_json(&clip_json(vocabulary, merges, config)?, config, length)
    }

    /// Any tokenizer, from `tokenizer.json` and `tokenizer_config.json`. Texts are padded or cut to `length` tokens.
    ///
    /// # Errors
    /// If a file is malformed, or the padding token is not in the vocabulary.
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
        Ok(Self { tokenizer })
    }

    /// The ids of a text's tokens.
    ///
    /// # Errors
    /// If a part of the text has no token and the vocabulary has none for unknown parts.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.tokenizer.encode(text, true).map_err(fault)?.get_ids().to_vec())
    }

    /// The tokenizer as a `tokenizer.json`.
    ///
    /// # Errors
    /// If it cannot be serialized.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.tokenizer.to_string(false).map_err(fault)
    }
}

/// The `tokenizer.json` of CLIP's byte-pair encoding, as transformers' `CLIPTokenizer` configures it.
fn clip_json(vocabulary: &str, merges: &str, config: &Json) -> Result<String, TokenizerError> {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(vocabulary).map_err(|error| fault(format!("vocab.json: {error}")))?;
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty()).collect();
    let special = Special::read(config)?;
    let id = |token: &str| {
        let id = vocabulary.get(token).and_then(serde_json::Value::as_u64);
        id.ok_or_else(|| fault(format!("vocab.json: expected the special token `{token}`")))
    };
    let mut tokens: Vec<&String> = Vec::new();
    for token in [&special.begin, &special.end, &special.unknown, &special.padding] {
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    let mut added = Vec::new();
    for token in tokens {
        added.push(json!({
            "id": id(token)?,
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
            "sep": [special.end, id(&special.end)?],
            "cls": [special.begin, id(&special.begin)?],
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
    Ok(json.to_string())
}
