//! Plain text, in windows that fit the context: what perplexity is measured on.

use std::path::Path;

use crate::checkpoint::Tokenizer;
use crate::checkpoint::files::{malformed, read_text};
use crate::engine::{Ask, Task};
use crate::error::{Error, Result};

/// Longest text file that is read.
const LIMIT_BYTES: u64 = 1 << 30;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens in a window, at least 2.
    pub size: usize,
    /// Tokens from the beginning of one window to that of the next, in `1..=size`. What an earlier window has scored is
    /// only there to be seen.
    pub stride: usize,
    /// llama.cpp's way (`llama-perplexity`): windows side by side, each begun anew with BOS in place of its first token
    /// where the tokenizer adds one, its second half scored, the rest of the text left out. The stride is not used.
    pub second_half: bool,
}

/// The windows of a text file as tasks.
///
/// # Errors
///
/// If the file cannot be read or is not UTF-8 text, or if it has too few tokens for a window that scores something.
pub fn windows(path: &Path, tokenizer: &Tokenizer, windows: Windows) -> Result<Vec<Task>> {
    let text = read_text(path, "text", "name a UTF-8 text file", LIMIT_BYTES)?;
    let tokens = tokenizer.encode(&text)?;
    let tasks = if windows.second_half {
        second_halves(&tokens, windows.size, tokenizer.added().first().copied())
    } else {
        strided(&tokens, windows)
    };
    if tasks.is_empty() {
        let least = if windows.second_half { windows.size } else { 2 };
        return Err(malformed(
            path,
            "text",
            &format!("{} tokens", tokens.len()),
            format!("at least {least}"),
        ));
    }
    Ok(tasks)
}

fn strided(tokens: &[u32], Windows { size, stride, .. }: Windows) -> Vec<Task> {
    let mut tasks = Vec::new();
    let mut scored = 0;
    for start in (0..tokens.len()).step_by(stride) {
        let end = tokens.len().min(start + size);
        let from = scored.max(start + 1) - start;
        if start + from < end {
            tasks.push(Task { tokens: tokens[start..end].to_vec(), ask: Ask::Score { from } });
        }
        scored = end;
        if end == tokens.len() {
            break;
        }
    }
    tasks
}

fn second_halves(tokens: &[u32], size: usize, bos: Option<u32>) -> Vec<Task> {
    let task = |window: &[u32]| {
        let mut tokens = window.to_vec();
        if let (Some(bos), Some(first)) = (bos, tokens.first_mut()) {
            *first = bos;
        }
        Task { tokens, ask: Ask::Score { from: size / 2 + 1 } }
    };
    tokens.chunks_exact(size).map(task).filter(|task| task.cached() > 0).collect()
}

/// The windows for a context: `size` and `stride` as asked for, or the largest there are (512 for `second_half`, as in
/// llama.cpp).
///
/// # Errors
///
/// [`Error::Flag`] if they do not fit each other or the context.
pub fn choose(
    size: Option<usize>,
    stride: Option<usize>,
    second_half: bool,
    context: usize,
) -> Result<Windows> {
    let largest = if second_half { 512 } else { 2048 };
    let size = size.unwrap_or(context.min(largest));
    let least = if second_half { 4 } else { 2 };
    let wrong =
        |flag, found: usize, expected: String| Err(Error::Flag { flag, found: found.to_string(), expected });
    if size < least || size > context {
        return wrong("--window", size, format!("{least} to {context} tokens, the context of the models"));
    }
    let stride = stride.unwrap_or(size);
    if stride == 0 || stride > size {
        return wrong("--stride", stride, format!("1 to {size} tokens, the size of a window"));
    }
    Ok(Windows { size, stride, second_half })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Window, and what is scored in it.
    fn scored(tasks: &[Task]) -> Vec<(Vec<u32>, Vec<u32>)> {
        let split = |task: &Task| match task.ask {
            Ask::Score { from } => (task.tokens.clone(), task.tokens[from..].to_vec()),
            Ask::Generate { .. } => unreachable!("a window is scored"),
        };
        tasks.iter().map(split).collect()
    }

    fn cut(count: u32, size: usize, stride: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
        let tokens: Vec<u32> = (0..count).collect();
        scored(&strided(&tokens, Windows { size, stride, second_half: false }))
    }

    #[test]
    fn a_stride_scores_every_token_but_the_first_once() {
        assert_eq!(cut(5, 8, 8), [((0..5).collect(), (1..5).collect())]);
        let windows = cut(10, 4, 2);
        let all: Vec<u32> = windows.iter().flat_map(|(_, scored)| scored.clone()).collect();
        assert_eq!(all, (1..10).collect::<Vec<_>>());
        assert_eq!(windows[1], (vec![2, 3, 4, 5], vec![4, 5]));
        // Side by side, the first of each window has nothing before it.
        let all: Vec<u32> = cut(9, 4, 4).into_iter().flat_map(|(_, scored)| scored).collect();
        assert_eq!(all, [1, 2, 3, 5, 6, 7]);
        assert!(cut(1, 4, 4).is_empty());
    }

    #[test]
    fn second_halves_are_llama_cpps() {
        let tokens: Vec<u32> = (10..31).collect();
        let windows = scored(&second_halves(&tokens, 8, Some(1)));
        // n - 1 - n / 2 tokens of each window, and the rest of the text left out.
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[1], (vec![1, 19, 20, 21, 22, 23, 24, 25], vec![23, 24, 25]));
        assert_eq!(scored(&second_halves(&tokens, 8, None))[1].0[0], 18);
    }

    #[test]
    fn windows_fit_the_context() {
        assert_eq!(
            choose(None, None, false, 256).unwrap(),
            Windows { size: 256, stride: 256, second_half: false }
        );
        assert_eq!(
            choose(None, Some(5), true, 4096).unwrap(),
            Windows { size: 512, stride: 5, second_half: true }
        );
        for (size, stride) in [(Some(257), None), (Some(1), None), (Some(8), Some(9)), (None, Some(0))] {
            assert_eq!(choose(size, stride, false, 256).unwrap_err().exit_code(), 2);
        }
    }
}
