//! Minifies JavaScript: removes comments and unneeded white space. This is not a parser: it recognises strings,
//! templates, comments and regular expressions, and treats the rest as words and punctuation.

use std::collections::{BTreeSet, HashMap};

/// Names of up to this many bytes are not renamed.
const SHORT: usize = 4;

/// Removes comments and unneeded white space. Keeps a line break where a statement may end.
pub fn shortened(script: &str) -> String {
    let mut result = String::with_capacity(script.len());
    let (mut rest, mut space, mut line_break) = (script, false, false);
    while let Some(first) = rest.chars().next() {
        let length = token(rest, &result);
        let (text, after) = rest.split_at(length);
        rest = after;
        if first.is_whitespace() || text.starts_with("//") || text.starts_with("/*") {
            space = true;
            line_break |= text.contains('\n');
            continue;
        }
        let last = result.chars().last();
        if let Some(last) = last.filter(|_| space) {
            let inside = "{([,;".contains(last) || "})]".contains(first);
            let joined = part_of_word(last) && part_of_word(first) || last == first && "+-/".contains(first);
            if line_break && !inside {
                result.push('\n');
            } else if joined {
                result.push(' ');
            }
        }
        result.push_str(text);
        (space, line_break) = (false, false);
    }
    result
}

/// The long names that a script declares and that can be renamed: not exported, and not also names of properties.
pub fn own_names(script: &str) -> BTreeSet<&str> {
    let (mut declared, mut shared) = (BTreeSet::new(), BTreeSet::new());
    let mut before = ["", ""];
    for (start, end) in words(script) {
        let name = &script[start..end];
        let left = script[..start].trim_end().chars().last().unwrap_or(' ');
        let right = script[end..].trim_start().chars().next().unwrap_or(' ');
        let property = ".\"'`".contains(left) || ":\"'`".contains(right);
        let shorthand = "{,".contains(left) && "},".contains(right);
        if property || shorthand || before[0] == "export" {
            shared.insert(name);
        } else if ["function", "let", "const"].contains(&before[1]) && part_of_word(left) {
            declared.insert(name);
        }
        before = [before[1], name];
    }
    declared.into_iter().filter(|name| name.len() > SHORT && !shared.contains(name)).collect()
}

/// A script without the statement that begins with `start` and ends with a block in braces; `None` if there is none.
pub fn without_block(script: &str, start: &str) -> Option<String> {
    let start = script.find(start)?;
    let begin = start + script[start..].find('{')? + 1;
    let end = begin + braces(&script[begin..]);
    Some(format!("{}{}", &script[..start], &script[end..]))
}

/// Replaces words of a script by others, also in strings.
pub fn renamed(script: &str, names: &HashMap<String, String>) -> String {
    let mut result = String::with_capacity(script.len());
    let mut at = 0;
    for (start, end) in words(script) {
        let word = &script[start..end];
        result.push_str(&script[at..start]);
        result.push_str(names.get(word).map_or(word, String::as_str));
        at = end;
    }
    result + &script[at..]
}

/// Start and end of the words of a text.
fn words(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(part_of_word)?;
        at = start + word(&text[start..]);
        Some((start, at))
    })
}

/// Length in bytes of the token at the start of `text`, which is not empty. `before` is the text before it.
fn token(text: &str, before: &str) -> usize {
    let first = text.chars().next().map_or(0, char::len_utf8);
    let up_to = |end: &str| text.find(end).map_or(text.len(), |at| at + end.len());
    match text.as_bytes()[0] {
        b'"' | b'\'' => string(text),
        b'`' => template(text),
        // The line break is a token of its own.
        b'/' if text.starts_with("//") => text.find('\n').unwrap_or(text.len()),
        b'/' if text.starts_with("/*") => up_to("*/"),
        b'/' if value_expected(before) => regular_expression(text),
        b' ' | b'\n' | b'\t' | b'\r' => text.find(|c: char| !c.is_whitespace()).unwrap_or(text.len()),
        _ if text.starts_with(part_of_word) => word(text),
        _ => first,
    }
}

fn part_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn word(text: &str) -> usize {
    text.find(|c| !part_of_word(c)).unwrap_or(text.len())
}

/// Whether a value follows `before`, so that `/` begins a regular expression; otherwise it divides.
fn value_expected(before: &str) -> bool {
    let last_word = before.rsplit(|c| !part_of_word(c)).next().unwrap_or_default();
    match before.chars().last() {
        Some(')' | ']' | '}' | '"' | '\'' | '`') => false,
        Some(last) if part_of_word(last) => ["return", "typeof", "case", "in", "of"].contains(&last_word),
        _ => true,
    }
}

fn string(text: &str) -> usize {
    delimited(text, |_, _| None)
}

fn template(text: &str) -> usize {
    delimited(text, |text, at| text[at..].starts_with("${").then(|| at + 2 + braces(&text[at + 2..])))
}

/// Length in bytes up to and including the brace that closes a placeholder of a template.
fn braces(text: &str) -> usize {
    let (mut at, mut depth) = (0, 1);
    while depth > 0 && at < text.len() {
        match text.as_bytes()[at] {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        at += token(&text[at..], &text[..at]);
    }
    at
}

fn regular_expression(text: &str) -> usize {
    delimited(text, |text, at| text[at..].starts_with('[').then(|| at + class(&text[at..])))
}

/// Length in bytes of a character class of a regular expression.
fn class(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b']' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 1)
}

/// Length in bytes up to and including the next character that equals the first. A backslash escapes a character;
/// `nested` returns the end of a part that is skipped.
fn delimited(text: &str, nested: impl Fn(&str, usize) -> Option<usize>) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == bytes[0] => return at + 1,
            // The bytes of a multibyte character never equal an ASCII character.
            byte if !byte.is_ascii() => at += 1,
            _ => at = nested(text, at).unwrap_or(at + 1),
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{own_names, renamed, shortened, without_block};

    #[test]
    fn comments_and_unneeded_white_space_are_removed() {
        let cases = [
            ("// one\nconst a = 1; /* two */ let b;\n", "const a=1;let b;"),
            ("function f ( a , b ) {\n  return a + b;\n}\n", "function f(a,b){return a+b;}"),
            ("import { a } from \"./b.js\";", "import{a}from\"./b.js\";"),
            ("a + +b - -c + ++d", "a+ +b- -c+ ++d"),
            ("static #key = 1;\nasync #call() {}", "static#key=1;async#call(){}"),
        ];
        for (script, expected) in cases {
            assert_eq!(shortened(script), expected);
        }
    }

    #[test]
    fn a_line_break_is_kept_where_a_statement_may_end() {
        assert_eq!(shortened("a = b\n  (c)\nreturn\nd\n"), "a=b\n(c)\nreturn\nd");
        assert_eq!(shortened("f = {\n  a,\n}\ng()"), "f={a,}\ng()");
        assert_eq!(shortened("x = () => {\n}\n// note\ny"), "x=()=>{}\ny");
    }

    #[test]
    fn strings_templates_and_regular_expressions_are_kept() {
        let kept = [
            r#"a="  // no comment ";"#,
            r#"a='it\'s  /* none */';"#,
            "a=`two  words ${f({b: `  ${\"}\"}  `})}  // ${c}  end`;",
            r"a=/[/ ]  \/ '/g;",
            r"f(/^\d+ $/.test(a));",
            "return/ a /.exec(b)",
        ];
        for script in kept {
            assert_eq!(shortened(script), script);
        }
        assert_eq!(shortened("a = b / c / d; // e"), "a=b/c/d;");
        assert_eq!(shortened("a = (b) / c; 'é' / 2"), "a=(b)/c;'é'/2");
    }

    #[test]
    fn a_block_is_removed_up_to_its_last_brace() {
        let script = "let a;\nfunction b(c) { if (c) { d = `}${c}`; } else { e('}'); } }\nfunction f() {}";
        assert_eq!(without_block(script, "function b(").as_deref(), Some("let a;\n\nfunction f() {}"));
        assert_eq!(without_block(script, "function g("), None);
    }

    #[test]
    fn only_whole_words_are_renamed() {
        let names = HashMap::from([("_ab".into(), "x".into())]);
        assert_eq!(renamed("_ab + _abc._ab($_ab)", &names), "x + _abc.x($_ab)");
    }

    #[test]
    fn own_names_are_declared_and_name_no_property() {
        let script = "function helper() {}\nexport function exported() {}\nlet counter = 0, second;\n\
            const property = 1, shorthand = 2;\nlet shorthand2 = a.property;\nf({ x, shorthand2 });\n\
            const quoted = 'quoted'; const abc = undeclared;";
        assert_eq!(own_names(script).into_iter().collect::<Vec<_>>(), ["counter", "helper"]);
    }
}
