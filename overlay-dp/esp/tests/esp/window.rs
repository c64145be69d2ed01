//! The window against a model that forgets nothing.

use std::collections::BTreeSet;

use overlay_esp::window::{SIZE, Window};
use proptest::prelude::*;

/// Each number is taken once, and while it is not too old.
#[derive(Default)]
struct Model {
    seen: BTreeSet<u32>,
}

impl Model {
    fn take(&mut self, number: u32) -> bool {
        let highest = self.seen.last().copied().unwrap_or(0);
        let old = number.checked_add(SIZE).is_some_and(|end| end <= highest);
        number != 0 && !old && self.seen.insert(number)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn as_the_model(
        start in prop_oneof![Just(1_u32), any::<u32>()],
        steps in prop::collection::vec(
            prop_oneof![4 => -100..100_i64, 2 => -20_000..20_000_i64, 1 => -100_000..100_000_i64],
            1..400,
        ),
    ) {
        let (mut window, mut model) = (Window::default(), Model::default());
        let mut at = i64::from(start);
        for step in steps {
            at = (at + step).clamp(0, u32::MAX.into());
            let number = u32::try_from(at).unwrap();
            let may = window.may_take(number);
            let taken = model.take(number);
            prop_assert_eq!((may, window.take(number)), (taken, taken), "{}", number);
            prop_assert_eq!(window.highest(), model.seen.last().copied().unwrap_or(0));
        }
    }
}

#[test]
fn its_edges() {
    let mut window = Window::default();
    assert!(!window.take(0));
    assert!(window.take(SIZE));
    assert!(!window.take(0) && window.take(1) && !window.take(1));
    assert!(window.take(SIZE + 1));
    assert!(!window.take(1), "as old as the window is long");
    assert!(window.take(2));
    assert!(window.take(u32::MAX));
    assert!(!window.take(u32::MAX) && !window.take(u32::MAX - SIZE));
    assert!(window.take(u32::MAX - SIZE + 1));
}
