// iOS, MediaPipe Tasks: a file of `kerasdet export --format tflite` (--postprocessing nms or postprocess) in the app's bundle.
//
// Podfile: pod 'MediaPipeTasksVision'

import MediaPipeTasksVision
import UIKit

final class ObjectDetection {
    private let detector: ObjectDetector

    init(model: String = "detector") throws {
        let options = ObjectDetectorOptions()
        options.baseOptions.modelAssetPath = Bundle.main.path(forResource: model, ofType: "tflite")!
        options.runningMode = .image
        options.scoreThreshold = 0.3
        detector = try ObjectDetector(options: options)
    }

    /// Label, score and box in pixels of the image, of each object.
    func detect(_ image: UIImage) throws -> [(label: String?, score: Float, box: CGRect)] {
        try detector.detect(image: MPImage(uiImage: image)).detections.map {
            ($0.categories[0].categoryName, $0.categories[0].score, $0.boundingBox)
        }
    }
}
