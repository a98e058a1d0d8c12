// Detects objects on iOS with MediaPipe Tasks. Put a file of `kerasdet export --format tflite` (--postprocessing nms or
// postprocess) into the app's bundle.
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

    /// Returns label, score and box of each object; boxes are in pixels of the image.
    func detect(_ image: UIImage) throws -> [(label: String?, score: Float, box: CGRect)] {
        try detector.detect(image: MPImage(uiImage: image)).detections.map {
            ($0.categories[0].categoryName, $0.categories[0].score, $0.boundingBox)
        }
    }
}
