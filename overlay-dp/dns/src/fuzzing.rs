//! This crate's insides, as the fuzzer reaches them: bytes that others have written.

use crate::Question;
use crate::upstream::Reply;

/// Takes what a resolver answers to a question, and hands it on when it is an answer.
pub fn reply(question: &Question, message: &[u8]) {
    let mut message = message.to_vec();
    let request = question.upstream(7);
    // The fuzzer would never guess it.
    if let (Some(to), Some(id)) = (message.get_mut(..2), request.get(..2)) {
        to.copy_from_slice(id);
    }
    if let Some(reply) = Reply::to(&request, &message) {
        let _ = reply.is_answer();
        let delivered = reply.deliver(question);
        assert!(
            delivered.len() <= question.limit(),
            "{} bytes",
            delivered.len()
        );
    }
}
