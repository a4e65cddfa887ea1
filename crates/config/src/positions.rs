use std::collections::HashMap;

use granit_parser::{Event, Parser, Span};

use crate::path::KeyPath;

/// Position in a text file, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Character in the line.
    pub column: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Positions(HashMap<KeyPath, Position>);

impl Positions {
    /// Positions in the first document, up to the first syntax error.
    pub(crate) fn new(text: &str) -> Self {
        let events = Parser::new_from_str(text).map_while(Result::ok).filter(|(event, _)| is_content(event)).collect();
        let mut walk = Walk { events, next: 0, found: HashMap::new(), anchors: HashMap::new() };
        walk.node(&KeyPath::root());
        Self(walk.found)
    }

    /// Position of the value or of its closest ancestor; `None` if that is the whole file.
    pub(crate) fn nearest(&self, path: &KeyPath) -> Option<Position> {
        let found = self.0.get(path).copied().or_else(|| self.position_by_text(path));
        found.or_else(|| self.nearest(&path.parent()?))
    }

    /// Position of a path whose text is the same: the keys of a sweep are written as `a.b` or as maps.
    fn position_by_text(&self, path: &KeyPath) -> Option<Position> {
        let text = path.to_string();
        self.0.iter().find(|(path, _)| path.to_string() == text).map(|(_, position)| *position)
    }
}

fn is_content(event: &Event<'_>) -> bool {
    let is_start = matches!(event, Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..));
    is_start || matches!(event, Event::Alias(_) | Event::SequenceEnd | Event::MappingEnd)
}

struct Walk<'a> {
    events: Vec<(Event<'a>, Span)>,
    next: usize,
    found: HashMap<KeyPath, Position>,
    anchors: HashMap<usize, KeyPath>,
}

impl<'a> Walk<'a> {
    fn node(&mut self, path: &KeyPath) {
        match self.take() {
            Some(Event::Scalar(_, _, anchor, _)) => self.anchor(anchor, path),
            // Contents of an alias have the positions of its anchor.
            Some(Event::Alias(anchor)) => {
                if let Some(from) = self.anchors.get(&anchor).cloned() {
                    self.copy(&from, path);
                }
            }
            Some(Event::SequenceStart(_, anchor, _)) => {
                self.anchor(anchor, path);
                self.sequence(path);
            }
            Some(Event::MappingStart(_, anchor, _)) => {
                self.anchor(anchor, path);
                self.mapping(path);
            }
            _ => {}
        }
    }

    fn sequence(&mut self, path: &KeyPath) {
        for index in 0.. {
            if self.ends(&Event::SequenceEnd) {
                return;
            }
            let entry = path.index(index);
            self.mark(&entry);
            self.node(&entry);
        }
    }

    fn mapping(&mut self, path: &KeyPath) {
        while !self.ends(&Event::MappingEnd) {
            let name = match self.events.get(self.next) {
                Some((Event::Scalar(name, ..), _)) => name.clone().into_owned(),
                _ => String::new(),
            };
            let entry = path.key(&name);
            self.mark(&entry);
            self.node(&entry);
            self.node(&entry);
            if name == "<<" {
                self.copy(&entry, path);
            }
        }
    }

    /// Records the position of the next event.
    fn mark(&mut self, path: &KeyPath) {
        if let Some((_, span)) = self.events.get(self.next) {
            let position = Position { line: span.start.line(), column: span.start.col() + 1 };
            self.found.insert(path.clone(), position);
        }
    }

    fn anchor(&mut self, anchor: usize, path: &KeyPath) {
        if anchor != 0 {
            self.anchors.insert(anchor, path.clone());
        }
    }

    /// Copies the positions below `from` to paths below `to` that have none.
    fn copy(&mut self, from: &KeyPath, to: &KeyPath) {
        let below: Vec<_> =
            self.found.iter().filter_map(|(path, position)| Some((to.join(path.below(from)?), *position))).collect();
        for (path, position) in below {
            self.found.entry(path).or_insert(position);
        }
    }

    /// True if the current node or the text ends here; consumes the event.
    fn ends(&mut self, end: &Event<'_>) -> bool {
        match self.events.get(self.next) {
            Some((event, _)) if event != end => false,
            _ => {
                self.next += 1;
                true
            }
        }
    }

    fn take(&mut self) -> Option<Event<'a>> {
        let event = self.events.get(self.next).map(|(event, _)| event.clone());
        self.next += 1;
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(KeyPath, usize, usize)]) {
        let positions = Positions::new(text);
        for (path, line, column) in expected {
            let found = positions.nearest(path);
            assert_eq!(found, Some(Position { line: *line, column: *column }), "{path}");
        }
    }

    #[test]
    fn positions_cover_keys_and_entries() {
        let text = "# a comment\na: 1\nb:\n  c: [x, {d: 1}]\n  e:\n    - 1\n    - f: 2\n";
        let (root, b) = (KeyPath::root(), KeyPath::keys(["b"]));
        check(
            text,
            &[
                (root.key("a"), 2, 1),
                (b.clone(), 3, 1),
                (b.key("c"), 4, 3),
                (b.key("c").index(0), 4, 7),
                (b.key("c").index(1).key("d"), 4, 11),
                (b.key("e").index(1).key("f"), 7, 7),
                (b.key("missing"), 3, 1),
            ],
        );
        assert_eq!(Positions::new(text).nearest(&root.key("missing")), None);
    }

    #[test]
    fn positions_of_aliases_are_those_of_anchors() {
        let text = "a: &shared\n  x: 1\nb: *shared\nc:\n  <<: *shared\n  y: 2\n";
        check(
            text,
            &[
                (KeyPath::keys(["b"]), 3, 1),
                (KeyPath::keys(["b", "x"]), 2, 3),
                (KeyPath::keys(["c", "x"]), 2, 3),
                (KeyPath::keys(["c", "y"]), 6, 3),
            ],
        );
    }

    #[test]
    fn positions_of_broken_text_end_at_the_error() {
        check("a: 1\nb: [1,\n", &[(KeyPath::keys(["a"]), 1, 1), (KeyPath::keys(["b"]), 2, 1)]);
    }
}
