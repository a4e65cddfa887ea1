use std::collections::HashMap;

use saphyr_parser::{Event, Parser, Span};

use crate::path::KeyPath;

/// A place in a text file; both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// Where each key and each entry of a list stands in a YAML text.
#[derive(Debug, Default)]
pub(crate) struct Positions(HashMap<KeyPath, Position>);

impl Positions {
    /// Of the first document, as far as it can be parsed.
    pub(crate) fn of(text: &str) -> Self {
        let events = Parser::new_from_str(text).map_while(Result::ok).filter(|(event, _)| is_content(event)).collect();
        let mut walk = Walk { events, next: 0, found: HashMap::new(), anchors: HashMap::new() };
        walk.node(&KeyPath::root());
        Self(walk.found)
    }

    /// Where the value is written, or else the closest thing that contains it; `None` if that is the whole file.
    pub(crate) fn nearest(&self, path: &KeyPath) -> Option<Position> {
        self.0.get(path).copied().or_else(|| self.nearest(&path.parent()?))
    }
}

fn is_content(event: &Event<'_>) -> bool {
    let node =
        matches!(event, Event::Alias(_) | Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..));
    node || matches!(event, Event::SequenceEnd | Event::MappingEnd)
}

/// A walk over the events of one document.
struct Walk<'a> {
    events: Vec<(Event<'a>, Span)>,
    next: usize,
    found: HashMap<KeyPath, Position>,
    anchors: HashMap<usize, KeyPath>,
}

impl<'a> Walk<'a> {
    /// Takes one node with all that it contains.
    fn node(&mut self, path: &KeyPath) {
        match self.take() {
            Some(Event::Scalar(_, _, anchor, _)) => self.anchor(anchor, path),
            Some(Event::Alias(anchor)) => self.alias(anchor, path),
            Some(Event::SequenceStart(anchor, _)) => {
                self.anchor(anchor, path);
                self.sequence(path);
            }
            Some(Event::MappingStart(anchor, _)) => {
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

    /// Remembers where the next event stands.
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

    /// What an alias contains stands where its anchor is.
    fn alias(&mut self, anchor: usize, path: &KeyPath) {
        if let Some(from) = self.anchors.get(&anchor).cloned() {
            self.copy(&from, path);
        }
    }

    /// Puts what lies below `from` below `to` as well, where nothing is yet.
    fn copy(&mut self, from: &KeyPath, to: &KeyPath) {
        let below: Vec<_> =
            self.found.iter().filter_map(|(path, position)| Some((to.join(path.below(from)?), *position))).collect();
        for (path, position) in below {
            self.found.entry(path).or_insert(position);
        }
    }

    /// Whether the node that is being walked ends here, or the text does.
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
        let positions = Positions::of(text);
        for (path, line, column) in expected {
            let found = positions.nearest(path);
            assert_eq!(found, Some(Position { line: *line, column: *column }), "{path}");
        }
    }

    #[test]
    fn keys_and_entries_have_places() {
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
        assert_eq!(Positions::of(text).nearest(&root.key("missing")), None);
    }

    #[test]
    fn aliases_lead_to_their_anchors() {
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
    fn a_broken_text_has_places_up_to_the_break() {
        check("a: 1\nb: [1,\n", &[(KeyPath::keys(["a"]), 1, 1), (KeyPath::keys(["b"]), 2, 1)]);
    }
}
