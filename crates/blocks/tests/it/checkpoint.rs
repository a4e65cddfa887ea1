use sepal_blocks::{BlockStack, Ends};
use sepal_checkpoint::Checkpoint;
use sepal_core::{Ragged, Span, Want};

use crate::model::{MODELS, Tiny, forward, goldens};

#[test]
fn a_checkpoint_gives_the_blocks_that_its_tensors_make() {
    for name in MODELS {
        let model = Tiny::open(name);
        let checkpoint = Checkpoint::open(goldens().join(format!("tiny-{name}"))).expect("a checkpoint");
        let span = Span::new(0, checkpoint.config().n_blocks).expect("a span");
        let stack = BlockStack::load(&checkpoint, span).expect("a stack");
        let rows = Ragged::from_lengths([7, 2]).expect("rows");
        let hidden = model.hidden(3, &rows, 1);
        let read = forward(&stack, &hidden, 3, &rows, Want::All);
        assert_eq!(read, forward(&model.whole(), &hidden, 3, &rows, Want::All), "{name}");

        let ends = Ends::load(&checkpoint).expect("the ends");
        assert_eq!(ends.embedding_matrix(), model.ends().embedding_matrix(), "{name}");
        let normed = ends.final_norm(&read).expect("normed");
        assert_eq!(normed, model.ends().final_norm(&read).expect("normed"), "{name}");
    }
}
